package main

import (
	"bufio"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"time"
)

const watchPoll = 50 * time.Millisecond

// watchBody passes a watch's events, whole lines at a time, until a rule ends or stalls it.
type watchBody struct {
	state    *state
	response *http.Response
	body     io.ReadCloser
	began    time.Time
	lines    chan []byte
	closed   chan struct{}
	rest     []byte
	json     bool
	ended    bool
	stalled  bool
}

func (s *state) watched(response *http.Response) io.ReadCloser {
	kind := response.Header.Get("Content-Type")
	watch := &watchBody{
		state: s, response: response, body: response.Body, began: time.Now(),
		lines: make(chan []byte), closed: make(chan struct{}), json: strings.HasPrefix(kind, "application/json"),
	}
	s.note("watches")
	go watch.read()
	return watch
}

// read hands over what comes; events in other encodings than JSON have no lines and pass in pieces.
func (w *watchBody) read() {
	defer close(w.lines)
	reader := bufio.NewReaderSize(w.body, 1<<16)
	for {
		var piece []byte
		var err error
		if w.json {
			piece, err = reader.ReadBytes('\n')
		} else {
			buffer := make([]byte, 1<<16)
			var count int
			count, err = reader.Read(buffer)
			piece = buffer[:count]
		}
		if len(piece) > 0 {
			select {
			case w.lines <- piece:
			case <-w.closed:
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (w *watchBody) Read(into []byte) (int, error) {
	for len(w.rest) == 0 {
		if w.ended {
			return 0, io.EOF
		}
		select {
		case <-w.closed:
			return 0, io.ErrClosedPipe
		case piece, open := <-w.lines:
			if !open {
				return 0, io.EOF
			}
			if !w.stalled {
				w.rest = piece
			}
		case <-time.After(watchPoll):
		}
		if rule := w.state.watchRule(w.response.Request, w.began); rule != nil {
			w.act(rule)
		} else if w.stalled { // what it missed is lost: only its end makes the client look again
			w.ended = true
		}
	}
	count := copy(into, w.rest)
	w.rest = w.rest[count:]
	return count, nil
}

func (w *watchBody) act(rule *Watch) {
	if rule.Stall {
		if !w.stalled {
			w.state.note("watches stalled")
		}
		w.stalled = true
		return
	}
	w.state.note("watches ended")
	w.ended = true
	if rule.Status != 0 && w.json {
		event, err := json.Marshal(map[string]any{"type": "ERROR", "object": failure(rule.Status)})
		if err == nil {
			w.rest = append(w.rest, append(event, '\n')...)
		}
	}
}

func (w *watchBody) Close() error {
	select {
	case <-w.closed:
	default:
		close(w.closed)
	}
	return w.body.Close()
}
