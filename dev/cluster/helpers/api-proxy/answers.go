package main

import (
	"encoding/json"
	"net/http"
	"strconv"
	"time"
)

const noAnswerSeconds = 60

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
