// Command portservice is what TestPorts reaches inside a sandbox: a web service, on the
// loopback address only, that does what web services do.
package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"strconv"

	"github.com/coder/websocket"
)

func main() {
	next := make(chan struct{})
	http.HandleFunc("/", seen)
	http.HandleFunc("/redirect", func(w http.ResponseWriter, r *http.Request) {
		http.SetCookie(w, &http.Cookie{Name: "session", Value: "1", Path: "/", Domain: "example.org"})
		http.Redirect(w, r, "/arrived", http.StatusSeeOther)
	})
	// The second event comes only after the first one was seen.
	http.HandleFunc("/next", func(http.ResponseWriter, *http.Request) { next <- struct{}{} })
	http.HandleFunc("/events", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range 3 {
			if i > 0 {
				<-next
			}
			fmt.Fprintf(w, "data: %d\n\n", i)
			if err := http.NewResponseController(w).Flush(); err != nil {
				return
			}
		}
	})
	http.HandleFunc("/download", func(w http.ResponseWriter, r *http.Request) {
		n, _ := strconv.Atoi(r.URL.Query().Get("bytes"))
		block := make([]byte, 1<<16)
		for i := range block {
			block[i] = byte(i * 7)
		}
		for ; n > 0; n -= len(block) {
			if _, err := w.Write(block); err != nil {
				return
			}
		}
	})
	http.HandleFunc("/socket", socket)
	http.HandleFunc("/slam", func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err == nil {
			conn.Close()
		}
	})
	log.Fatal(http.ListenAndServe("127.0.0.1:8080", nil)) //nolint:gosec // it lives for one test
}

// Seen is what the service says about a request.
type Seen struct {
	Method, Path, Query, Host, Prefix, Proto, Authorization, Cookie string
	Bytes                                                           int64
	SHA256                                                          string
}

func seen(w http.ResponseWriter, r *http.Request) {
	h := sha256.New()
	n, err := io.Copy(h, r.Body)
	if err != nil {
		return
	}
	_ = json.NewEncoder(w).Encode(Seen{
		Method: r.Method, Path: r.URL.EscapedPath(), Query: r.URL.RawQuery, Host: r.Host, Prefix: r.Header.Get("X-Forwarded-Prefix"),
		Proto: r.Header.Get("X-Forwarded-Proto"), Authorization: r.Header.Get("Authorization"), Cookie: r.Header.Get("Cookie"),
		Bytes: n, SHA256: hex.EncodeToString(h.Sum(nil)),
	})
}

// socket sends every message back, until the one that says otherwise.
func socket(w http.ResponseWriter, r *http.Request) {
	conn, err := websocket.Accept(w, r, nil)
	if err != nil {
		return
	}
	defer conn.CloseNow() //nolint:errcheck // the other side has been told
	conn.SetReadLimit(-1)
	for {
		kind, message, err := conn.Read(r.Context())
		if err != nil {
			return
		}
		if string(message) == "bye" {
			_ = conn.Close(4000, "bye")
			return
		}
		if err := conn.Write(r.Context(), kind, message); err != nil {
			return
		}
	}
}
