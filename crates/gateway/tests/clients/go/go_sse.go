package main

import (
	"errors"
	"net/http"
	"time"

	"github.com/tmaxmax/go-sse"
)

func goSSEShown(url string) {
	r, _ := http.NewRequest(http.MethodGet, url, http.NoBody)
	conn := sse.NewConnection(r)
	conn.SubscribeMessages(func(ev sse.Event) {
		event(ev.LastEventID, ev.Data)
	})
	if err := conn.Connect(); err != nil {
		failed(err)
	}
}

func goSSERecommended(url string) {
	client := sse.Client{
		ResponseValidator: func(response *http.Response) error {
			if response.StatusCode == 204 {
				end()
			}
			if response.StatusCode >= 400 && response.StatusCode < 500 {
				failed(errors.New(response.Status))
			}
			return sse.DefaultValidator(response)
		},
	}
	r, _ := http.NewRequest(http.MethodGet, url, http.NoBody)
	conn := client.NewConnection(r)
	// An event is one line. A line may be as long as --max-payload.
	conn.Buffer(nil, 2<<20)
	conn.SubscribeToAll(func(ev sse.Event) {
		received(ev.LastEventID, ev.Type, ev.Data)
	})
	for {
		// Returns after any answer except 200. The next call continues after the last id.
		conn.Connect()
		time.Sleep(2 * time.Second)
	}
}
