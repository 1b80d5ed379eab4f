package main

import "github.com/donovanhide/eventsource"

func donovanhideShown(url string) {
	stream, err := eventsource.Subscribe(url, "")
	if err != nil {
		failed(err)
	}
	for {
		ev := <-stream.Events
		event(ev.Id(), ev.Data())
	}
}

func donovanhideRecommended(url string) {
	stream, err := eventsource.Subscribe(url, "")
	if err != nil {
		failed(err)
	}
	for {
		select {
		case ev := <-stream.Events:
			received(ev.Id(), ev.Event(), ev.Data())
		// The library reconnects only after the error was read.
		case err := <-stream.Errors:
			if answer, ok := err.(eventsource.SubscriptionError); ok && answer.Code == 204 {
				end()
			} else if ok && answer.Code < 500 {
				failed(err)
			}
		}
	}
}
