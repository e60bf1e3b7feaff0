package main

import (
	"flag"
	"io"
	"log"
	"net"
)

// gate passes bytes; TLS stays between the client and the API server.
func gate(arguments []string) error {
	flags := flag.NewFlagSet("gate", flag.ExitOnError)
	listen := flags.String("listen", "", "addresses or fd:N, comma-separated")
	to := flags.String("to", "", "address of the API server")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	opened, err := listeners(*listen)
	if err != nil {
		return err
	}
	failed := make(chan error)
	for _, listener := range opened {
		go func() { failed <- passAll(listener, *to) }()
	}
	return <-failed
}

func passAll(listener net.Listener, to string) error {
	for {
		client, err := listener.Accept()
		if err != nil {
			return err
		}
		go pass(client.(*net.TCPConn), to)
	}
}

func pass(client *net.TCPConn, to string) {
	defer client.Close()
	dialed, err := net.Dial("tcp", to)
	if err != nil {
		log.Print(err)
		return
	}
	server := dialed.(*net.TCPConn)
	defer server.Close()
	ended := make(chan struct{}, 2)
	copyHalf := func(into, from *net.TCPConn) {
		// Either side may go away at any time: that ends the copy and is no error of the gate's.
		_, _ = io.Copy(into, from)
		_ = into.CloseWrite()
		ended <- struct{}{}
	}
	go copyHalf(server, client)
	go copyHalf(client, server)
	<-ended
	<-ended
}
