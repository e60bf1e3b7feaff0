package main

import (
	"crypto/tls"
	"flag"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"time"
)

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
