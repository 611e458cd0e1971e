package main

import (
	"context"
	"encoding/json"

	"google.golang.org/grpc"
)

// Message is what every call carries, as JSON: the same in Go, Python and Node without a compiler of protocol buffers.
type Message struct {
	ID    string   `json:"id"`
	Index int      `json:"index,omitempty"`
	Count int      `json:"count,omitempty"` // of Count and Through: how many messages
	Gap   int      `json:"gap,omitempty"`   // of both: milliseconds between them
	Who   string   `json:"who,omitempty"`
	Via   []string `json:"via,omitempty"` // of Chain: who was asked on the way
}

// plain is a codec of JSON under protocol buffers' name, so that the content type is the usual one.
type plain struct{}

func (plain) Marshal(value any) ([]byte, error)      { return json.Marshal(value) }
func (plain) Unmarshal(data []byte, value any) error { return json.Unmarshal(data, value) }
func (plain) Name() string                           { return "proto" }

const service = "trial.Market"

var (
	countStream   = grpc.StreamDesc{StreamName: "Count", ServerStreams: true}
	throughStream = grpc.StreamDesc{StreamName: "Through", ServerStreams: true}
	chatStream    = grpc.StreamDesc{StreamName: "Chat", ServerStreams: true, ClientStreams: true}
)

// market is what the three languages serve alike.
type market interface {
	one(context.Context, *Message) (*Message, error)
	chain(context.Context, *Message) (*Message, error)
	count(*Message, grpc.ServerStream) error
	through(*Message, grpc.ServerStream) error
	chat(grpc.ServerStream) error
}

func unary(method func(market, context.Context, *Message) (*Message, error)) grpc.MethodHandler {
	return func(server any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		asked := new(Message)
		if err := decode(asked); err != nil {
			return nil, err
		}
		return method(server.(market), ctx, asked)
	}
}

func streaming(method func(market, *Message, grpc.ServerStream) error) grpc.StreamHandler {
	return func(server any, stream grpc.ServerStream) error {
		asked := new(Message)
		if err := stream.RecvMsg(asked); err != nil {
			return err
		}
		return method(server.(market), asked, stream)
	}
}

var description = grpc.ServiceDesc{
	ServiceName: service,
	HandlerType: (*market)(nil),
	Methods: []grpc.MethodDesc{
		{MethodName: "One", Handler: unary(market.one)},
		{MethodName: "Chain", Handler: unary(market.chain)},
	},
	Streams: []grpc.StreamDesc{
		{StreamName: "Count", ServerStreams: true, Handler: streaming(market.count)},
		{StreamName: "Through", ServerStreams: true, Handler: streaming(market.through)},
		{StreamName: "Chat", ServerStreams: true, ClientStreams: true, Handler: func(server any, stream grpc.ServerStream) error {
			return server.(market).chat(stream)
		}},
	},
}
