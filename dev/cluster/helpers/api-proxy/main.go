// Command api-proxy brings clients to the API server: `gate` passes bytes from the machine's loopback into the cluster's
// network, `faults` stands in between and misbehaves as it is told.
package main

import (
	"fmt"
	"log"
	"net"
	"os"
	"strconv"
	"strings"
)

func main() {
	if len(os.Args) < 2 {
		log.Fatal("usage: api-proxy gate|faults FLAGS")
	}
	commands := map[string]func([]string) error{"gate": gate, "faults": faults}
	command, known := commands[os.Args[1]]
	if !known {
		log.Fatalf("no such command: %s", os.Args[1])
	}
	log.Fatal(command(os.Args[2:]))
}

// listeners opens each of a comma-separated list: `fd:3` is a socket that was opened by the parent, in another network.
func listeners(list string) ([]net.Listener, error) {
	var opened []net.Listener
	for address := range strings.SplitSeq(list, ",") {
		listener, err := open(address)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", address, err)
		}
		opened = append(opened, listener)
	}
	return opened, nil
}

func open(address string) (net.Listener, error) {
	number, inherited := strings.CutPrefix(address, "fd:")
	if !inherited {
		return net.Listen("tcp", address)
	}
	descriptor, err := strconv.Atoi(number)
	if err != nil {
		return nil, err
	}
	return net.FileListener(os.NewFile(uintptr(descriptor), address))
}
