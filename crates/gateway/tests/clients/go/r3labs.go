package main

import (
	"errors"
	"net/http"
	"time"

	"github.com/r3labs/sse/v2"
	"gopkg.in/cenkalti/backoff.v1"
)

func r3labsShown(url string) {
	client := sse.NewClient(url)
	client.SubscribeRaw(func(msg *sse.Event) {
		event(string(msg.ID), string(msg.Data))
	})
}

func r3labsRecommended(url string) {
	// An event is one line. A line may be as long as --max-payload.
	client := sse.NewClient(url, sse.ClientMaxBufferSize(2<<20))
	// The library's own strategy gives up after a while. The loop below reconnects.
	client.ReconnectStrategy = &backoff.StopBackOff{}
	client.ResponseValidator = func(_ *sse.Client, response *http.Response) error {
		if response.StatusCode == 200 {
			return nil
		}
		response.Body.Close()
		if response.StatusCode == 204 {
			end()
		}
		if response.StatusCode < 500 {
			failed(errors.New(response.Status))
		}
		return errors.New(response.Status)
	}
	for {
		// Returns nil when a replica ends the stream.
		client.SubscribeRaw(func(msg *sse.Event) {
			// An unfinished last block has no data, and the id of the event before it.
			if len(msg.Data) > 0 {
				received(string(msg.ID), string(msg.Event), string(msg.Data))
			}
		})
		time.Sleep(2 * time.Second)
	}
}
