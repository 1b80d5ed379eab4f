package main

import (
	"time"

	"github.com/launchdarkly/eventsource"
)

func launchDarklyShown(url string) {
	stream, err := eventsource.Subscribe(url, "")
	if err != nil {
		failed(err)
	}
	for {
		ev := <-stream.Events
		event(ev.Id(), ev.Data())
	}
}

func launchDarklyRecommended(url string) {
	stream, err := eventsource.SubscribeWithURL(url,
		eventsource.StreamOptionCanRetryFirstConnection(-1),
		eventsource.StreamOptionUseBackoff(10*time.Second),
		eventsource.StreamOptionUseJitter(0.5),
		// The time of three heartbeats.
		eventsource.StreamOptionReadTimeout(24*time.Second),
		// Without it, the program has to read stream.Errors as well.
		eventsource.StreamOptionErrorHandler(func(err error) eventsource.StreamErrorHandlerResult {
			answer, ok := err.(eventsource.SubscriptionError)
			if ok && answer.Code == 204 {
				end()
			}
			return eventsource.StreamErrorHandlerResult{CloseNow: ok && answer.Code < 500}
		}))
	if err != nil {
		failed(err)
	}
	for ev := range stream.Events {
		received(ev.Id(), ev.Event(), ev.Data())
	}
}
