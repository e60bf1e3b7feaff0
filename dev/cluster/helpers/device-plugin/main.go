// Command device-plugin offers GPUs that are not there through the kubelet's device-plugin API. A file lists the indices
// of those that are to be unhealthy; it is read again several times a second.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	api "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

const (
	socketName = "thranite-gpu.sock"
	pollEvery  = 200 * time.Millisecond
)

type plugin struct {
	api.UnimplementedDevicePluginServer
	resource  string
	devices   int
	unhealthy string
}

func main() {
	served := plugin{}
	flag.StringVar(&served.resource, "resource", "nvidia.com/gpu", "name of the resource")
	flag.IntVar(&served.devices, "devices", 1, "number of devices")
	flag.StringVar(&served.unhealthy, "unhealthy", "", "file that lists the indices of unhealthy devices")
	flag.Parse()
	for {
		if err := serve(&served); err != nil {
			log.Print(err)
		}
		time.Sleep(pollEvery)
	}
}

// serve registers with the kubelet and returns when the kubelet has started anew and so forgotten this plugin.
func serve(served *plugin) error {
	kubelet, err := os.Stat(api.KubeletSocket)
	if os.IsNotExist(err) {
		return nil
	} else if err != nil {
		return err
	}
	path := filepath.Join(api.DevicePluginPath, socketName)
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return err
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	api.RegisterDevicePluginServer(server, served)
	defer server.Stop()
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	if err := register(served.resource); err != nil {
		return err
	}
	log.Printf("registered %d %s", served.devices, served.resource)
	for {
		select {
		case err := <-failed:
			return err
		case <-time.After(pollEvery):
		}
		if startedAnew(kubelet, path) {
			return fmt.Errorf("the kubelet has started anew")
		}
	}
}

// startedAnew looks at the kubelet's socket and at the plugin's own, which a kubelet that starts removes: a new socket
// may have the inode of the old one.
func startedAnew(kubelet os.FileInfo, own string) bool {
	now, err := os.Stat(api.KubeletSocket)
	if err != nil || !os.SameFile(kubelet, now) || !now.ModTime().Equal(kubelet.ModTime()) {
		return true
	}
	_, err = os.Stat(own)
	return err != nil
}

func register(resource string) error {
	connection, err := grpc.NewClient("unix://"+api.KubeletSocket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer connection.Close()
	limited, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	request := &api.RegisterRequest{Version: api.Version, Endpoint: socketName, ResourceName: resource}
	_, err = api.NewRegistrationClient(connection).Register(limited, request)
	return err
}

func (p *plugin) sick() (string, error) {
	content, err := os.ReadFile(p.unhealthy)
	if os.IsNotExist(err) {
		return "", nil
	}
	return string(content), err
}

func (p *plugin) state(sick string) *api.ListAndWatchResponse {
	listed := map[string]bool{}
	for _, index := range strings.Fields(sick) {
		listed[index] = true
	}
	answer := &api.ListAndWatchResponse{}
	for number := range p.devices {
		id, health := strconv.Itoa(number), api.Healthy
		if listed[id] {
			health = api.Unhealthy
		}
		answer.Devices = append(answer.Devices, &api.Device{ID: id, Health: health})
	}
	return answer
}

// ListAndWatch sends the devices once, and again whenever the file changes.
func (p *plugin) ListAndWatch(_ *api.Empty, stream api.DevicePlugin_ListAndWatchServer) error {
	sent, first := "", true
	for stream.Context().Err() == nil {
		sick, err := p.sick()
		if err != nil {
			return err
		}
		if first || sick != sent {
			if err := stream.Send(p.state(sick)); err != nil {
				return err
			}
			sent, first = sick, false
		}
		time.Sleep(pollEvery)
	}
	return nil
}

// Allocate names the devices as the real plugin does; there is nothing to mount.
func (p *plugin) Allocate(_ context.Context, request *api.AllocateRequest) (*api.AllocateResponse, error) {
	answer := &api.AllocateResponse{}
	for _, container := range request.ContainerRequests {
		visible := strings.Join(container.DevicesIds, ",")
		environment := map[string]string{"NVIDIA_VISIBLE_DEVICES": visible}
		answer.ContainerResponses = append(answer.ContainerResponses, &api.ContainerAllocateResponse{Envs: environment})
	}
	return answer, nil
}

func (p *plugin) GetDevicePluginOptions(context.Context, *api.Empty) (*api.DevicePluginOptions, error) {
	return &api.DevicePluginOptions{}, nil
}
