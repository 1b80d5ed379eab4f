// Publishes to these channels in turn, until there is a file "stop".
package main

import (
	"context"
	"fmt"
	"os"
	"time"
)

func one(channel string, number int) {
	text := fmt.Sprintf("go %d", number)
	id, err := publish(context.Background(), channel, text, text)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(channel, number, id)
	time.Sleep(10 * time.Millisecond)
}

func main() {
	channels, number := os.Args[1:], 0
	for ; ; number++ {
		if _, err := os.Stat("stop"); err == nil {
			break
		}
		for _, channel := range channels {
			one(channel, number)
		}
	}
	one(channels[0], number-1)
}
