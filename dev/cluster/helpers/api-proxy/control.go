package main

import (
	"encoding/json"
	"log"
	"net"
	"net/http"
	"os"
)

// control serves GET, PUT and DELETE /faults on a socket.
func (p *faultProxy) control(path string) error {
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return err
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	routes := http.NewServeMux()
	routes.HandleFunc("GET /faults", func(writer http.ResponseWriter, _ *http.Request) {
		if err := json.NewEncoder(writer).Encode(p.state.report()); err != nil {
			log.Print(err)
		}
	})
	routes.HandleFunc("PUT /faults", func(writer http.ResponseWriter, request *http.Request) {
		rules := &Rules{}
		decoder := json.NewDecoder(request.Body)
		decoder.DisallowUnknownFields()
		err := decoder.Decode(rules)
		if err == nil {
			err = p.state.set(rules)
		}
		if err != nil {
			http.Error(writer, err.Error(), http.StatusBadRequest)
		}
	})
	routes.HandleFunc("DELETE /faults", func(writer http.ResponseWriter, _ *http.Request) {
		if err := p.state.set(&Rules{}); err != nil {
			http.Error(writer, err.Error(), http.StatusInternalServerError)
		}
	})
	return http.Serve(listener, routes)
}
