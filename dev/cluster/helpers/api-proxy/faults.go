package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"
)

const noAnswerSeconds = 60

type faultProxy struct {
	state *state
	// Certificates of clients end here, so their names travel in headers that the front proxy's certificate vouches for.
	// Clients with tokens go on without it, or they could name themselves.
	vouched, plain *httputil.ReverseProxy
}

func faults(arguments []string) error {
	flags := flag.NewFlagSet("faults", flag.ExitOnError)
	listen := flags.String("listen", "", "addresses or fd:N, comma-separated")
	to := flags.String("to", "", "URL of the API server")
	control := flags.String("control", "", "path of the control socket")
	pki := flags.String("pki", "", "folder of the cluster's certificates")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	target, err := url.Parse(*to)
	if err != nil {
		return err
	}
	opened, err := listeners(*listen)
	if err != nil {
		return err
	}
	proxy := &faultProxy{state: newState()}
	serving, err := proxy.tls(*pki, target)
	if err != nil {
		return err
	}
	failed := make(chan error)
	go func() { failed <- proxy.control(*control) }()
	for _, listener := range opened {
		server := &http.Server{Handler: proxy, TLSConfig: serving, ConnState: proxy.track, ErrorLog: log.New(io.Discard, "", 0)}
		go func() { failed <- server.ServeTLS(goneListener{listener, proxy.state}, "", "") }()
	}
	return <-failed
}

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

func (p *faultProxy) reverse(target *url.URL, client *tls.Config) *httputil.ReverseProxy {
	return &httputil.ReverseProxy{
		Rewrite: func(call *httputil.ProxyRequest) {
			call.SetURL(target)
			call.Out.Host = call.In.Host
			nameClient(call.Out.Header, call.In.TLS)
		},
		Transport:     &http.Transport{TLSClientConfig: client, ForceAttemptHTTP2: true, MaxIdleConnsPerHost: 100},
		FlushInterval: -1,
		ModifyResponse: func(response *http.Response) error {
			if isWatch(response.Request) && response.StatusCode == http.StatusOK {
				response.Body = p.state.watched(response)
			}
			return nil
		},
		// An API server that is away looks like one: the connection ends.
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
		ErrorLog:     log.New(io.Discard, "", 0),
	}
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

func (p *faultProxy) ServeHTTP(writer http.ResponseWriter, request *http.Request) {
	if p.state.gone() {
		panic(http.ErrAbortHandler)
	}
	result := p.state.judge(request)
	if result.cut {
		panic(http.ErrAbortHandler)
	}
	if result.answer != nil && !result.answer.Lost {
		misanswer(writer, request, result.answer)
		return
	}
	lost := result.loseLast || result.answer != nil
	recorder := &statusWriter{ResponseWriter: writer, lost: lost}
	p.pass(recorder, request)
	p.state.finish(result, recorder.status)
	if result.lastWrite {
		if !lost { // the last answer leaves before the connections are cut
			_ = http.NewResponseController(writer).Flush()
			time.Sleep(50 * time.Millisecond)
		}
		p.state.leaveForGood()
	}
	if lost {
		panic(http.ErrAbortHandler)
	}
}

func (p *faultProxy) pass(writer http.ResponseWriter, request *http.Request) {
	if len(request.TLS.PeerCertificates) > 0 {
		p.vouched.ServeHTTP(writer, request)
	} else {
		p.plain.ServeHTTP(writer, request)
	}
}

func (p *faultProxy) track(connection net.Conn, change http.ConnState) {
	p.state.track(connection.(*tls.Conn).NetConn(), change)
}

// misanswer gives the chosen answer, or none.
func misanswer(writer http.ResponseWriter, request *http.Request, answer *Answer) {
	delay := answer.DelaySeconds
	if answer.Status == 0 && delay == 0 {
		delay = noAnswerSeconds
	}
	select {
	case <-request.Context().Done():
	case <-time.After(seconds(delay)):
	}
	if answer.Status == 0 {
		panic(http.ErrAbortHandler)
	}
	if answer.Status == http.StatusTooManyRequests {
		writer.Header().Set("Retry-After", "1")
	}
	writer.Header().Set("Content-Type", "application/json")
	writer.WriteHeader(answer.Status)
	_ = json.NewEncoder(writer).Encode(failure(answer.Status)) // the client may have left
}

var reasons = map[int]string{
	409: "Conflict", 410: "Expired", 422: "Invalid", 429: "TooManyRequests", 500: "InternalError", 503: "ServiceUnavailable", 504: "Timeout",
}

// failure is the Status object that the API server would send.
func failure(code int) map[string]any {
	return map[string]any{
		"kind": "Status", "apiVersion": "v1", "metadata": map[string]any{}, "status": "Failure",
		"code": code, "reason": reasons[code], "message": "injected fault: " + strconv.Itoa(code),
	}
}

// statusWriter notes the status and, where the answer is to be lost, keeps it back.
type statusWriter struct {
	http.ResponseWriter
	status int
	lost   bool
}

func (w *statusWriter) WriteHeader(status int) {
	if status >= 200 {
		w.status = status
	}
	if !w.lost {
		w.ResponseWriter.WriteHeader(status)
	}
}

func (w *statusWriter) Write(content []byte) (int, error) {
	if w.lost {
		return len(content), nil
	}
	return w.ResponseWriter.Write(content)
}

func (w *statusWriter) Unwrap() http.ResponseWriter {
	if w.lost { // flushing would send the header
		return nil
	}
	return w.ResponseWriter
}

// goneListener resets connections while the proxy is to be gone.
type goneListener struct {
	net.Listener
	state *state
}

func (l goneListener) Accept() (net.Conn, error) {
	for {
		connection, err := l.Listener.Accept()
		if err != nil || !l.state.gone() {
			return connection, err
		}
		abort(connection)
	}
}

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
			http.Error(writer, fmt.Sprint(err), http.StatusBadRequest)
		}
	})
	routes.HandleFunc("DELETE /faults", func(writer http.ResponseWriter, _ *http.Request) {
		if err := p.state.set(&Rules{}); err != nil {
			http.Error(writer, err.Error(), http.StatusInternalServerError)
		}
	})
	return http.Serve(listener, routes)
}
