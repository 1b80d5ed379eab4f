package main

import (
	"context"
	"fmt"
	"os"

	"github.com/redis/go-redis/v9"
)

// goRedis publishes with the library's defaults. Its arguments are the URL of Redis and the prefix of the channels.
func goRedis(url string) {
	options, err := redis.ParseURL(url)
	if err != nil {
		failed(err)
	}
	client := redis.NewClient(options)
	publish := func(kind string, value any) {
		name := "go-redis." + kind
		if err := client.Publish(context.Background(), os.Args[4]+name, value).Err(); err != nil {
			fmt.Printf("%s\trefused by the library\n", name)
		}
	}
	publish("text", "hello")
	publish("envelope", `{"event":"price","data":10}`)
	publish("object", map[string]any{"event": "price", "data": 10})
	publish("number", 42)
	publish("boolean", true)
}
