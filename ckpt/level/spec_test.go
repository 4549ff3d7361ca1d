package level

import (
	"errors"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestParse(t *testing.T) {
	for text, want := range map[string]Spec{
		"local":                {Kind: KindLocal},
		"partner":              {Kind: KindPartner},
		"rs:2+1":               {Kind: KindRS, Data: 2, Parity: 1},
		"rs:28+4":              {Kind: KindRS, Data: 28, Parity: 4},
		"dir:/scratch/vft":     {Kind: KindDir, Path: "/scratch/vft"},
		"dir:/a b/ü:1?x=y#z":   {Kind: KindDir, Path: "/a b/ü:1?x=y#z"},
		"s3:bucket":            {Kind: KindS3, Bucket: "bucket"},
		"s3:my.bucket-1/a/B_c": {Kind: KindS3, Bucket: "my.bucket-1", Prefix: "a/B_c"},
		"s3:bucket?region=eu-central-1": {
			Kind: KindS3, Bucket: "bucket", Region: "eu-central-1",
		},
		"s3:https://s3.example.org/bucket/p": {
			Kind: KindS3, Endpoint: "https://s3.example.org", Bucket: "bucket", Prefix: "p",
		},
		"s3:http://[::1]:7070/bucket/p?region=us-east-1": {
			Kind: KindS3, Endpoint: "http://[::1]:7070", Bucket: "bucket", Prefix: "p", Region: "us-east-1",
		},
	} {
		got, err := Parse(text)
		if err != nil || got != want {
			t.Errorf("%s: got %+v, %v; want %+v", text, got, err, want)
			continue
		}
		if got.String() != text {
			t.Errorf("%s: printed as %s", text, got)
		}
	}
}

func TestParseOtherForms(t *testing.T) {
	for text, want := range map[string]string{
		"rs:02+1":                          "rs:2+1",
		"dir:/a//b/../c/":                  "dir:/a/c",
		"s3:bucket/":                       "s3:bucket",
		"s3:bucket/p/":                     "s3:bucket/p",
		"s3:HTTPS://S3.Example.org/bucket": "s3:https://s3.example.org/bucket",
	} {
		got, err := Parse(text)
		if err != nil || got.String() != want {
			t.Errorf("%s: got %s, %v; want %s", text, got, err, want)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	long := strings.Repeat("a", 5000)
	for text, why := range map[string]string{
		"":                                 "want local, partner",
		"tape":                             "want local, partner",
		"Local":                            "want local, partner",
		" local":                           "want local, partner",
		long:                               "want local, partner",
		"local:":                           "no argument",
		"partner:2":                        "no argument",
		"rs":                               "want rs:K+M",
		"rs:":                              "want rs:K+M",
		"rs:2":                             "want rs:K+M",
		"rs:2+":                            "want rs:K+M",
		"rs:-2+1":                          "want rs:K+M",
		"rs:2+1+1":                         "want rs:K+M",
		"rs:99999999999999999999+1":        "want rs:K+M",
		"rs:0+1":                           "at least 1 data",
		"rs:2+0":                           "at least 1 data",
		"rs:30+3":                          "at most 32",
		"dir":                              "no directory",
		"dir:":                             "no directory",
		"dir:ckpt":                         "must be absolute",
		"dir:~/ckpt":                       "must be absolute",
		"dir:/":                            "root of the file system",
		"dir:/a/..":                        "root of the file system",
		"dir:/a,b":                         "comma",
		"dir:/a\nb":                        "cannot be printed",
		"dir:/a\x00b":                      "cannot be printed",
		"dir:/\xff":                        "not UTF-8",
		"dir:/" + long:                     "longer than",
		"s3":                               "no bucket",
		"s3:":                              "no bucket",
		"s3:https://host":                  "no bucket",
		"s3:https://host/":                 "no bucket",
		"s3:ab":                            "bucket",
		"s3:Bucket":                        "bucket",
		"s3:-bucket":                       "bucket",
		"s3:a..b":                          "bucket",
		"s3:" + long:                       "bucket",
		"s3:bucket//p":                     "prefix",
		"s3:bucket/../p":                   "prefix",
		"s3:bucket/p q":                    "prefix",
		"s3:bucket/p%2e":                   "prefix",
		"s3:bucket/" + long:                "prefix is longer",
		"s3:bucket?":                       "region=REGION",
		"s3:bucket?secret=x":               "region=REGION",
		"s3:bucket?region=":                "region",
		"s3:bucket?region=EU":              "region",
		"s3:ftp://host/bucket":             "want http or https",
		"s3:https:///bucket":               "no HOST",
		"s3:https://key:secret@h/bucket":   "credentials do not belong here",
		"s3:https://host:/bucket":          "no port",
		"s3:https://host:0/bucket":         "port",
		"s3:https://host:99999/bucket":     "port",
		"s3:https://host:x/bucket":         "no HOST",
		"s3:https://ho st/bucket":          "no HOST",
		"s3:https://[fe80::1%25eth0]/buck": "no HOST",
	} {
		_, err := Parse(text)
		if !errors.Is(err, ErrSpec) || !strings.Contains(err.Error(), why) {
			t.Errorf("%.60q: got %v, want an error with %q", text, err, why)
		}
		if err != nil && len(err.Error()) > 900 {
			t.Errorf("%.60q: message of %d bytes", text, len(err.Error()))
		}
	}
}

// What Parse accepts it accepts again in printed form, with the same meaning.
func checkRoundTrip(t interface{ Fatalf(string, ...any) }, text string) {
	s, err := Parse(text)
	if err != nil {
		if !errors.Is(err, ErrSpec) {
			t.Fatalf("%q: %v does not wrap ErrSpec", text, err)
		}
		return
	}
	again, err := Parse(s.String())
	if err != nil || again != s || again.String() != s.String() {
		t.Fatalf("%q: read as %+v, printed and read again as %+v, %v", text, s, again, err)
	}
}

func TestParseRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.StringMatching(`(local|partner|rs:[0-9]{1,2}\+[0-9]{1,2}|dir:/[a-z./ ]{0,20}|`+
			`s3:(https?://[a-zA-Z0-9.\[\]:-]{0,10}/)?[a-z0-9.-]{1,8}(/[A-Za-z._/-]{0,10})?(\?region=[a-z0-9-]{0,5})?)`).Draw(t, "text")
		checkRoundTrip(t, text)
	})
}

func FuzzParse(f *testing.F) {
	for _, text := range []string{
		"local", "partner", "rs:4+2", "dir:/a/b", "s3:bucket/p", "s3:https://[::1]:7070/bucket/p?region=eu-1",
		"s3:http://a:b@c/d", "dir:/a,b", "rs:+", "s3:https://h:/bucket",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) { checkRoundTrip(t, text) })
}
