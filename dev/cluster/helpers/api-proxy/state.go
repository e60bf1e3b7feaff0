package main

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"time"
)

// Passed is a write that reached the API server.
type Passed struct {
	Method    string `json:"method"`
	Path      string `json:"path"`
	UserAgent string `json:"userAgent"`
	Status    int    `json:"status"` // 0 while it runs
}

// verdict is what becomes of one call.
type verdict struct {
	answer    *Answer // instead of passing it
	cut       bool    // end the connection
	lastWrite bool    // the proxy is gone after it
	loseLast  bool
	passed    int // place in the list of writes, or -1
}

// state is the rules in force, what has happened under them, and the open connections.
type state struct {
	mutex       sync.Mutex
	rules       *Rules
	since       time.Time
	goneUntil   time.Time // zero: not gone; far: until told otherwise
	random      *rand.Rand
	hits        []int // by answer
	counts      map[string]int
	writes      []Passed
	countedDown int
	connections map[net.Conn]struct{}
}

var forever = time.Unix(1<<40, 0)

func newState() *state {
	fresh := &state{connections: map[net.Conn]struct{}{}}
	if err := fresh.set(&Rules{}); err != nil {
		panic(err) // no rules at all always compile
	}
	return fresh
}

// set puts rules in force and forgets what happened before.
func (s *state) set(rules *Rules) error {
	if err := rules.compile(); err != nil {
		return err
	}
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.rules, s.since = rules, time.Now()
	s.random = rand.New(rand.NewPCG(rules.Seed, 0))
	s.hits, s.counts, s.writes, s.countedDown = make([]int, len(rules.Answers)), map[string]int{}, nil, 0
	s.goneUntil = time.Time{}
	if rules.GoneSeconds > 0 {
		s.leave(time.Now().Add(seconds(rules.GoneSeconds)))
	} else if rules.Gone || rules.Writes != nil && rules.Writes.Count == 0 {
		s.leave(forever)
	}
	return nil
}

// leave needs the mutex.
func (s *state) leave(until time.Time) {
	s.goneUntil = until
	for connection := range s.connections {
		abort(connection)
	}
}

// abort ends a connection with a reset, as a peer that went away does.
func abort(connection net.Conn) {
	if tcp, ok := connection.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // the connection may be closed already: that is what is wanted
	}
	_ = connection.Close()
}

func (s *state) gone() bool {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return time.Now().Before(s.goneUntil)
}

// count needs the mutex.
func (s *state) count(what string) { s.counts[what]++ }

func (s *state) judge(request *http.Request) verdict {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.count("requests")
	result := verdict{passed: -1}
	if s.rules.concerns(request) {
		if answer := s.chosen(request); answer != nil {
			s.count(fmt.Sprintf("answered %d", answer.Status))
			result.answer = answer
			if !answer.Lost {
				return result
			}
		}
		if s.limit(request, &result); result.cut {
			s.count("cut")
			return result
		}
	}
	if isWrite(request) {
		result.passed = len(s.writes)
		s.writes = append(s.writes, Passed{Method: request.Method, Path: request.URL.Path, UserAgent: request.UserAgent()})
	}
	return result
}

func (s *state) chosen(request *http.Request) *Answer {
	for index := range s.rules.Answers {
		answer := &s.rules.Answers[index]
		spent := answer.Times > 0 && s.hits[index] >= answer.Times
		if spent || !answer.match(request) || s.random.Float64() >= answer.Share {
			continue
		}
		s.hits[index]++
		return answer
	}
	return nil
}

func (s *state) limit(request *http.Request, result *verdict) {
	writes := s.rules.Writes
	if writes == nil || !isWrite(request) || !writes.match(request) {
		return
	}
	if s.countedDown >= writes.Count {
		result.cut = true
		return
	}
	s.countedDown++
	result.lastWrite = s.countedDown == writes.Count
	result.loseLast = result.lastWrite && writes.Lost
}

func (s *state) finish(result verdict, status int) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if result.passed >= 0 && result.passed < len(s.writes) {
		s.writes[result.passed].Status = status
	}
}

func (s *state) leaveForGood() {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.leave(forever)
}

// watchRule is the rule for a watch if its time has come.
func (s *state) watchRule(request *http.Request, began time.Time) *Watch {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	rule := s.rules.Watch
	if rule == nil || !s.rules.concerns(request) || !rule.match(request) {
		return nil
	}
	from := began
	if s.since.After(from) {
		from = s.since
	}
	if time.Since(from) < seconds(rule.AfterSeconds) {
		return nil
	}
	return rule
}

func (s *state) note(what string) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.count(what)
}

func (s *state) track(connection net.Conn, change http.ConnState) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if change == http.StateClosed || change == http.StateHijacked {
		delete(s.connections, connection)
	} else {
		s.connections[connection] = struct{}{}
	}
}

// Report is what GET /faults answers.
type Report struct {
	Rules  *Rules         `json:"rules"`
	Gone   bool           `json:"gone"`
	Counts map[string]int `json:"counts"`
	Writes []Passed       `json:"writes"`
}

func (s *state) report() Report {
	gone := s.gone()
	s.mutex.Lock()
	defer s.mutex.Unlock()
	counts := map[string]int{}
	for what, number := range s.counts {
		counts[what] = number
	}
	return Report{Rules: s.rules, Gone: gone, Counts: counts, Writes: append([]Passed{}, s.writes...)}
}
