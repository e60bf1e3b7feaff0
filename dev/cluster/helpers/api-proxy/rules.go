package main

import (
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"time"
)

// Rules is what the control socket takes: how the proxy misbehaves. The zero value does nothing.
type Rules struct {
	Seed      uint64   `json:"seed"`      // of the choice which calls are hit
	UserAgent string   `json:"userAgent"` // expression; only these clients are hit
	Answers   []Answer `json:"answers"`   // the first that hits a call answers it
	Watch     *Watch   `json:"watch"`
	Writes    *Writes  `json:"writes"`
	// Gone closes all connections and every new one; GoneSeconds ends that by itself.
	Gone        bool    `json:"gone"`
	GoneSeconds float64 `json:"goneSeconds"`

	client *regexp.Regexp
}

// Answer is given to a share of the calls instead of the API server's.
type Answer struct {
	Calls
	Share  float64 `json:"share"`  // of the calls that match, 0 to 1
	Times  int     `json:"times"`  // at most this often; 0 is no limit
	Status int     `json:"status"` // 0: no answer at all, the connection ends after DelaySeconds
	// Lost lets the call through and then loses the API server's answer.
	Lost         bool    `json:"lost"`
	DelaySeconds float64 `json:"delaySeconds"`
}

// Watch ends or stalls watches some time after they began, or after the rules came if that was later.
type Watch struct {
	Calls
	AfterSeconds float64 `json:"afterSeconds"`
	Status       int     `json:"status"` // of an ERROR event before the end: 410, 500; 0 ends without one
	Stall        bool    `json:"stall"`  // stays open and says nothing more
}

// Writes lets exactly Count writes through; after the answer to the last one the proxy is gone.
type Writes struct {
	Calls
	Count int  `json:"count"`
	Lost  bool `json:"lost"` // the answer to the last one is lost too
}

// Calls chooses calls by method and by an expression on the path; empty means all.
type Calls struct {
	Methods []string `json:"methods"`
	Path    string   `json:"path"`

	path *regexp.Regexp
}

func (c *Calls) compile() (err error) {
	c.path, err = regexp.Compile(c.Path)
	return err
}

func (c *Calls) match(request *http.Request) bool {
	return (len(c.Methods) == 0 || slices.Contains(c.Methods, request.Method)) && c.path.MatchString(request.URL.Path)
}

func (r *Rules) compile() (err error) {
	if r.client, err = regexp.Compile(r.UserAgent); err != nil {
		return err
	}
	for index := range r.Answers {
		answer := &r.Answers[index]
		if answer.Share < 0 || answer.Share > 1 {
			return fmt.Errorf("a share lies between 0 and 1: %g", answer.Share)
		}
		if err := answer.compile(); err != nil {
			return err
		}
	}
	if r.Watch != nil {
		if err := r.Watch.compile(); err != nil {
			return err
		}
	}
	if r.Writes != nil {
		return r.Writes.compile()
	}
	return nil
}

func (r *Rules) concerns(request *http.Request) bool {
	return r.client.MatchString(request.UserAgent())
}

func seconds(number float64) time.Duration {
	return time.Duration(number * float64(time.Second))
}

func isWrite(request *http.Request) bool {
	return request.Method != http.MethodGet && request.Method != http.MethodHead && request.Method != http.MethodOptions
}

func isWatch(request *http.Request) bool {
	watch := request.URL.Query().Get("watch")
	return request.Method == http.MethodGet && watch != "" && watch != "0" && watch != "false"
}
