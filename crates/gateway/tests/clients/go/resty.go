package main

import (
	"net/http"
	"time"

	"resty.dev/v3"
)

func restyShown(url string) {
	source := resty.NewSSESource().
		SetURL(url).
		OnMessage(func(e any) {
			ev := e.(*resty.SSE)
			event(ev.ID, ev.Data)
		}, nil)
	if err := source.Get(); err != nil {
		failed(err)
	}
}

func restyRecommended(url string) {
	source := resty.NewSSESource().
		SetURL(url).
		// An event is one line. A line may be as long as --max-payload.
		SetSizeMaxBuffer(2<<20).
		OnMessage(func(e any) {
			ev := e.(*resty.SSE)
			event(ev.ID, ev.Data)
		}, nil).
		AddEventListener("gateway.end", func(any) { end() }, nil).
		OnRequestFailure(func(err error, response *http.Response) {
			if response != nil && response.StatusCode == 204 {
				end()
			}
			if response != nil && response.StatusCode < 500 {
				failed(err)
			}
		})
	for {
		// Returns when the stream ends. The next call continues after the last id.
		source.Get()
		time.Sleep(2 * time.Second)
	}
}
