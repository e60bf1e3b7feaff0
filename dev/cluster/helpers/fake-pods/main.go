// Command fake-pods answers for every pod that kwok pretends to run: probes, scrapes and drains. The kernel hands it all
// connections to kwok's pod subnet; what it says for a pod can be set, by IP, through a control socket.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
)

// What an idle runtime answers to the operator's scraper; tests/contract holds it to the runtime's own words.
const idleMetrics = `# HELP thranite_requests_waiting Requests accepted and not running
# TYPE thranite_requests_waiting gauge
thranite_requests_waiting{model_name="kwok"} 0.0
# HELP thranite_requests_running Requests of which a sequence runs
# TYPE thranite_requests_running gauge
thranite_requests_running{model_name="kwok"} 0.0
# HELP thranite_kv_cache_usage_ratio KV blocks held by unfinished requests, of all
# TYPE thranite_kv_cache_usage_ratio gauge
thranite_kv_cache_usage_ratio{model_name="kwok"} 0.0
# HELP thranite_requests_received_total Requests that reached the engine
# TYPE thranite_requests_received_total counter
thranite_requests_received_total{model_name="kwok"} 0.0
# HELP thranite_requests_finished_total Requests ended, by reason
# TYPE thranite_requests_finished_total counter
thranite_requests_finished_total{model_name="kwok",reason="stop"} 0.0
thranite_requests_finished_total{model_name="kwok",reason="length"} 0.0
thranite_requests_finished_total{model_name="kwok",reason="abort"} 0.0
thranite_requests_finished_total{model_name="kwok",reason="timeout"} 0.0
thranite_requests_finished_total{model_name="kwok",reason="error"} 0.0
# HELP thranite_requests_rejected_total Requests refused, by reason
# TYPE thranite_requests_rejected_total counter
thranite_requests_rejected_total{model_name="kwok",reason="queue_full"} 0.0
thranite_requests_rejected_total{model_name="kwok",reason="draining"} 0.0
thranite_requests_rejected_total{model_name="kwok",reason="asleep"} 0.0
thranite_requests_rejected_total{model_name="kwok",reason="invalid"} 0.0
`

type pods struct {
	mutex    sync.Mutex
	metrics  map[string]string // by IP; "*" for all others
	requests map[string]int    // by method and path
	drains   map[string]string // body of the last drain, by IP
}

func main() {
	control := flag.String("control", "", "path of the control socket")
	ports := flag.String("ports", "8000,8001", "ports to answer on")
	flag.Parse()
	state := &pods{metrics: map[string]string{"*": idleMetrics}, requests: map[string]int{}, drains: map[string]string{}}
	failed := make(chan error)
	for port := range strings.SplitSeq(*ports, ",") {
		go func() { failed <- http.ListenAndServe("0.0.0.0:"+port, http.HandlerFunc(state.answer)) }()
	}
	if err := os.Remove(*control); err != nil && !os.IsNotExist(err) {
		log.Fatal(err)
	}
	socket, err := net.Listen("unix", *control)
	if err != nil {
		log.Fatal(err)
	}
	go func() { failed <- http.Serve(socket, state.controls()) }()
	log.Fatal(<-failed)
}

func podAddress(request *http.Request) string {
	address, _ := request.Context().Value(http.LocalAddrContextKey).(net.Addr)
	host, _, err := net.SplitHostPort(address.String())
	if err != nil {
		return address.String()
	}
	return host
}

func (p *pods) answer(writer http.ResponseWriter, request *http.Request) {
	ip := podAddress(request)
	body, err := io.ReadAll(io.LimitReader(request.Body, 1<<16))
	if err != nil {
		http.Error(writer, err.Error(), http.StatusBadRequest)
		return
	}
	p.mutex.Lock()
	defer p.mutex.Unlock()
	p.requests[request.Method+" "+request.URL.Path]++
	switch request.URL.Path {
	case "/metrics":
		writer.Header().Set("Content-Type", "text/plain; version=0.0.4")
		text, set := p.metrics[ip]
		if !set {
			text = p.metrics["*"]
		}
		fmt.Fprint(writer, text)
	case "/drain":
		if request.Method == http.MethodDelete {
			delete(p.drains, ip)
		} else {
			p.drains[ip] = string(body)
		}
		fmt.Fprintln(writer, "{}")
	case "/startupz", "/readyz", "/livez":
		fmt.Fprintln(writer, "ok")
	default:
		http.NotFound(writer, request)
	}
}

// controls serves GET /state and PUT or DELETE /metrics/IP, where IP may be *.
func (p *pods) controls() http.Handler {
	routes := http.NewServeMux()
	routes.HandleFunc("GET /state", func(writer http.ResponseWriter, _ *http.Request) {
		p.mutex.Lock()
		defer p.mutex.Unlock()
		if err := json.NewEncoder(writer).Encode(map[string]any{"requests": p.requests, "drains": p.drains}); err != nil {
			log.Print(err)
		}
	})
	routes.HandleFunc("PUT /metrics/{ip}", func(writer http.ResponseWriter, request *http.Request) {
		body, err := io.ReadAll(request.Body)
		if err != nil {
			http.Error(writer, err.Error(), http.StatusBadRequest)
			return
		}
		p.mutex.Lock()
		defer p.mutex.Unlock()
		p.metrics[request.PathValue("ip")] = string(body)
	})
	routes.HandleFunc("DELETE /metrics/{ip}", func(_ http.ResponseWriter, request *http.Request) {
		p.mutex.Lock()
		defer p.mutex.Unlock()
		delete(p.metrics, request.PathValue("ip"))
		if request.PathValue("ip") == "*" {
			p.metrics["*"] = idleMetrics
		}
	})
	return routes
}
