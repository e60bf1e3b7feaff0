package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/http"
	"net/url"
	"os"
	"strings"
)

// tls sets up both ways to the API server and gives back how to serve clients.
func (p *faultProxy) tls(pki string, target *url.URL) (*tls.Config, error) {
	authority, err := os.ReadFile(pki + "/ca.crt")
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(authority) {
		return nil, errors.New("no certificate in ca.crt")
	}
	serving, err := tls.LoadX509KeyPair(pki+"/faults.crt", pki+"/faults.key")
	if err != nil {
		return nil, err
	}
	front, err := tls.LoadX509KeyPair(pki+"/front-proxy.crt", pki+"/front-proxy.key")
	if err != nil {
		return nil, err
	}
	p.vouched = p.reverse(target, &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{front}})
	p.plain = p.reverse(target, &tls.Config{RootCAs: pool})
	return &tls.Config{
		Certificates: []tls.Certificate{serving},
		ClientAuth:   tls.VerifyClientCertIfGiven,
		ClientCAs:    pool,
	}, nil
}

func nameClient(header http.Header, connection *tls.ConnectionState) {
	for name := range header {
		if strings.HasPrefix(strings.ToLower(name), "x-remote-") {
			header.Del(name)
		}
	}
	if len(connection.PeerCertificates) == 0 {
		return
	}
	subject := connection.PeerCertificates[0].Subject
	header.Set("X-Remote-User", subject.CommonName)
	for _, group := range append(subject.Organization, "system:authenticated") {
		header.Add("X-Remote-Group", group)
	}
}
