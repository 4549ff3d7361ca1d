// Command netserver is a program for tests of the gateway: every rank serves
// port 80 and says what it can reach. With arguments it tries to connect to
// each of them and ends.
package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"time"
)

func main() {
	if len(os.Args) > 1 {
		for _, to := range os.Args[1:] {
			fmt.Println(to, dial(to))
		}
		return
	}
	if err := serve(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func dial(to string) string {
	c, err := net.DialTimeout("tcp", to, 5*time.Second)
	if err != nil {
		return err.Error()
	}
	_ = c.Close()
	return "reached"
}

func serve() error {
	var hits atomic.Int64
	quit := make(chan struct{})
	resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, "10.77.0.1:53")
	}}
	http.HandleFunc("/hits", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, hits.Add(1)) })
	http.HandleFunc("/dial", func(w http.ResponseWriter, r *http.Request) { _, _ = fmt.Fprint(w, dial(r.FormValue("to"))) })
	http.HandleFunc("/lookup", func(w http.ResponseWriter, r *http.Request) {
		addrs, err := resolver.LookupHost(r.Context(), r.FormValue("name"))
		_, _ = fmt.Fprint(w, addrs, err)
	})
	http.HandleFunc("/wait", func(_ http.ResponseWriter, _ *http.Request) { <-quit })
	http.HandleFunc("/quit", func(http.ResponseWriter, *http.Request) { close(quit) })
	ln, err := net.Listen("tcp", ":80")
	if err != nil {
		return err
	}
	server := &http.Server{}
	go func() { _ = server.Serve(ln) }()
	if os.Getenv("OMPI_COMM_WORLD_RANK") == "0" {
		<-quit
		return server.Shutdown(context.Background())
	}
	for { // rank 0 may not serve yet
		r, err := http.Get("http://guest0/wait")
		if err == nil {
			_, _ = io.Copy(io.Discard, r.Body)
			return r.Body.Close()
		}
		time.Sleep(50 * time.Millisecond)
	}
}
