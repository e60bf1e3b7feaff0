// Command image-runtime stands between containerd's shim and runc. Containers of the development image, a tree of empty
// folders, get the host's interpreter, virtual environment and checkout laid over it; all others pass unchanged.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// containerd notes on each container which image it came from.
const imageAnnotation = "io.kubernetes.cri.image-name"

type settings struct {
	Runc   string           `json:"runc"`
	Image  string           `json:"image"`
	Mounts []map[string]any `json:"mounts"`
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "image-runtime:", err)
		os.Exit(1)
	}
}

func run() error {
	content, err := os.ReadFile(os.Getenv("THRANITE_DEV_IMAGE"))
	if err != nil {
		return err
	}
	var chosen settings
	if err := json.Unmarshal(content, &chosen); err != nil {
		return err
	}
	if slices.Contains(os.Args, "create") {
		if err := layOver(chosen); err != nil {
			return err
		}
	}
	return syscall.Exec(chosen.Runc, append([]string{"runc"}, os.Args[1:]...), os.Environ())
}

func bundle() (string, error) {
	at := slices.IndexFunc(os.Args, func(word string) bool { return word == "--bundle" || word == "-b" })
	if at < 0 || at+1 >= len(os.Args) {
		return os.Getwd()
	}
	return os.Args[at+1], nil
}

// layOver adds the mounts before those of the pod, so that a volume of the pod's wins; but after them what lies deeper
// than a volume, so that one over /tmp does not hide a checkout in /tmp/x.
func layOver(chosen settings) error {
	folder, err := bundle()
	if err != nil {
		return err
	}
	path := filepath.Join(folder, "config.json")
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var spec map[string]any
	if err := json.Unmarshal(content, &spec); err != nil {
		return err
	}
	annotations, _ := spec["annotations"].(map[string]any)
	if annotations[imageAnnotation] != chosen.Image {
		return nil
	}
	mounts, _ := spec["mounts"].([]any)
	before, after := []any{}, []any{}
	for _, mount := range chosen.Mounts {
		if isWithin(mount, mounts) {
			after = append(after, mount)
		} else {
			before = append(before, mount)
		}
	}
	spec["mounts"] = slices.Concat(before, mounts, after)
	if content, err = json.Marshal(spec); err != nil {
		return err
	}
	return os.WriteFile(path, content, 0o600)
}

func isWithin(mount map[string]any, mounts []any) bool {
	inner, _ := mount["destination"].(string)
	return slices.ContainsFunc(mounts, func(other any) bool {
		fields, _ := other.(map[string]any)
		outer, _ := fields["destination"].(string)
		return outer != "" && strings.HasPrefix(inner, strings.TrimSuffix(outer, "/")+"/")
	})
}
