package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"github.com/mpirun-vft/vft/guest"
	"github.com/mpirun-vft/vft/guest/image"
	"github.com/mpirun-vft/vft/internal/images"
)

// defaultImages is the image cache used when no flag names one.
func defaultImages() string { return images.DefaultCache() }

func newImage(g *globals) *cobra.Command {
	var cache string
	cmd := &cobra.Command{Use: "image", Short: "Build and check the image that guests boot from"}
	cmd.PersistentFlags().StringVar(&cache, "cache", defaultImages(), "image cache")
	cmd.AddCommand(newImageBuild(g, &cache),
		&cobra.Command{
			Use: "ls", Short: "List the images in the cache", Args: exactly(),
			RunE: func(cmd *cobra.Command, _ []string) error {
				list, err := images.List(cache)
				if err != nil {
					return err
				}
				if g.json {
					return printJSON(cmd.OutOrStdout(), list)
				}
				return table(cmd.OutOrStdout(), "image\tkernel\tpackages\tsize\tcurrent", func(row func(...any)) {
					for _, e := range list {
						row(e.ID, e.Kernel, e.Packages, size(e.Bytes), e.Current)
					}
				})
			},
		},
		&cobra.Command{
			Use: "verify [IMAGE]", Short: "Read every byte of an image and compare it with its hash", Args: func(c *cobra.Command, args []string) error {
				if len(args) > 1 {
					return usageError{fmt.Errorf("`%s` takes at most one IMAGE; see --help", c.CommandPath())}
				}
				return nil
			},
			RunE: func(cmd *cobra.Command, args []string) error {
				img, err := images.Open(cache, slices.Concat(args, []string{""})[0])
				if err != nil {
					return err
				}
				if err := image.Verify(img); err != nil {
					return err
				}
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s is as it was built\n", filepath.Base(img.Dir))
				return err
			},
		},
	)
	return cmd
}

func newImageBuild(g *globals, cache *string) *cobra.Command {
	var agent string
	var libraries []string
	var force bool
	cmd := &cobra.Command{
		Use: "build", Short: "Build the guest image, or find it in the cache", Args: exactly(),
		Long: `Builds the kernel, initial and root file systems that guests boot from, out of
the distribution's packages, and makes the result the current image. What is in
the cache under the same recipe is not built again.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			img, err := image.Build(cmd.Context(), image.BuildOptions{
				CacheDir: *cache, Recipe: image.DefaultRecipe(), Agent: agent, Libraries: libraries, Force: force, Log: g.logger(false),
			})
			if err != nil {
				return err
			}
			if err := images.SetCurrent(*cache, filepath.Base(img.Dir)); err != nil {
				return err
			}
			if g.json {
				return printJSON(cmd.OutOrStdout(), img.Info)
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), img.Dir)
			return err
		},
	}
	cmd.Flags().StringVar(&agent, "agent", besideSelf("vft-guest"), "the agent program to put into the image")
	cmd.Flags().StringSliceVar(&libraries, "library", []string{besideSelf(guest.MPICHPreload)}, "a library to put into the image for its programs")
	cmd.Flags().BoolVar(&force, "force", false, "build anew even what is in the cache")
	return cmd
}

// besideSelf is the path of a program installed next to this one.
func besideSelf(name string) string {
	self, err := os.Executable()
	if err != nil {
		return name
	}
	return filepath.Join(filepath.Dir(self), name)
}
