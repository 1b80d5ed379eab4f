// Clients of the gateway with libraries for Go. Each library is used as its README or example shows, and as
// docs/clients.md recommends.
//
//	clients LIBRARY shown|recommended URL
//
// prints a line for each event with its id and the SHA-1 of its data. It prints "end" when it knows that the channel
// is complete.
package main

import (
	"crypto/sha1"
	"fmt"
	"os"
	"strings"
	"time"
)

var programs = map[string]func(string){
	"r3labs shown":             r3labsShown,
	"r3labs recommended":       r3labsRecommended,
	"go-sse shown":             goSSEShown,
	"go-sse recommended":       goSSERecommended,
	"launchdarkly shown":       launchDarklyShown,
	"launchdarkly recommended": launchDarklyRecommended,
	"donovanhide shown":        donovanhideShown,
	"donovanhide recommended":  donovanhideRecommended,
	"resty shown":              restyShown,
	"resty recommended":        restyRecommended,
	"go-redis publish":         goRedis,
}

func main() {
	// Represents the other work of a service. Without it, Go ends a program whose goroutines all wait for each other.
	go func() {
		for {
			time.Sleep(time.Hour)
		}
	}()
	programs[os.Args[1]+" "+os.Args[2]](os.Args[3])
}

func event(id, data string) {
	fmt.Printf("%s\t%x\n", id, sha1.Sum([]byte(data)))
}

func end() {
	fmt.Println("end")
	os.Exit(0)
}

// received prints an event of the channel, and handles the gateway's own events.
func received(id, name, data string) {
	switch {
	case name == "gateway.end":
		end()
	case !strings.HasPrefix(name, "gateway."):
		event(id, data)
	}
}

// failed ends the program after an error that it cannot handle.
func failed(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
