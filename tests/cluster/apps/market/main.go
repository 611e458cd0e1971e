// The Go half of the trial's application, and of its load.
//
//	market serve                 HTTP/1.1 and WebSocket on $HTTP, gRPC on $GRPC, a greeting service on $GREET
//	market load FILE             asks as FILE says (JSON: a list of clients), and prints one JSON object a line
//
// Every answer says who has answered ($WHO) and repeats the request's id, so that a client can tell a wrong answer.
package main

import (
	"fmt"
	"os"
)

func main() {
	switch {
	case len(os.Args) == 2 && os.Args[1] == "serve":
		serve()
	case len(os.Args) == 3 && os.Args[1] == "load":
		load(os.Args[2])
	default:
		fmt.Fprintln(os.Stderr, "usage: market serve | market load FILE")
		os.Exit(2)
	}
}
