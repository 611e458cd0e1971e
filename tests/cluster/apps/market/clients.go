package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/gorilla/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// said is an error in few words, with those that tell one kind from another: refused, reset, an empty 503.
func said(err error) string {
	text := err.Error()
	if found, ok := status.FromError(err); ok {
		text = fmt.Sprintf("%s: %s", found.Code(), found.Message())
	}
	if errors.Is(err, context.DeadlineExceeded) {
		text = "no answer: " + text
	}
	if len(text) > 300 {
		text = text[:300]
	}
	return text
}

func open(ctx context.Context, plan Plan) (caller, error) {
	switch plan.Kind {
	case "http":
		return openHTTP(ctx, plan)
	case "ws":
		return openWebSocket(ctx, plan)
	case "greet":
		return openGreeted(ctx, plan)
	default:
		return openRPC(plan)
	}
}

func dial(ctx context.Context, target string) (net.Conn, error) {
	var dialer net.Dialer
	return dialer.DialContext(ctx, "tcp", target)
}

// keepAlive is an HTTP/1.1 client on one connection that tries nothing twice: what net/http's own would hide is seen.
type keepAlive struct {
	conn   net.Conn
	reader *bufio.Reader
	plan   Plan
	closed bool
}

func openHTTP(ctx context.Context, plan Plan) (caller, error) {
	conn, err := dial(ctx, plan.Target)
	if err != nil {
		return nil, err
	}
	return &keepAlive{conn: conn, reader: bufio.NewReader(conn), plan: plan}, nil
}

func (k *keepAlive) call(ctx context.Context, id string) (string, error) {
	if k.closed {
		return "", errEnded
	}
	deadline, _ := ctx.Deadline()
	_ = k.conn.SetDeadline(deadline)
	method, body := "GET", ""
	if k.plan.Method != "" {
		method, body = k.plan.Method, "an order"
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://"+k.plan.Target+"/", strings.NewReader(body))
	if err != nil {
		return "", err
	}
	request.Header.Set("X-Id", id)
	for name, value := range k.plan.Headers {
		request.Header.Set(name, value)
	}
	if k.idleEnd() {
		return "", errEnded // closed between two requests: nothing was asked yet
	}
	if err := request.Write(k.conn); err != nil {
		return "", err
	}
	response, err := http.ReadResponse(k.reader, request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return "", err
	}
	if response.StatusCode != http.StatusOK {
		return "", fmt.Errorf("status %d, %d bytes: %.80q", response.StatusCode, len(text), text)
	}
	var answer struct {
		Who, ID, Method string
		Length          int
	}
	if json.Unmarshal(text, &answer) != nil || answer.ID != id || answer.Method != method || answer.Length != len(body) {
		return "", fmt.Errorf("%w: %.80q", errWrong, text)
	}
	k.closed = response.Close
	return answer.Who, nil
}

// idleEnd tells whether the server has closed the connection while nothing was asked: a read that would block says no.
func (k *keepAlive) idleEnd() bool {
	deadline := time.Now().Add(time.Millisecond / 4)
	_ = k.conn.SetReadDeadline(deadline)
	_, err := k.reader.Peek(1)
	var late net.Error
	if errors.As(err, &late) && late.Timeout() {
		_ = k.conn.SetReadDeadline(time.Now().Add(k.plan.within()))
		return false
	}
	return err != nil
}

func (k *keepAlive) close() { _ = k.conn.Close() }

type talker struct{ conn *websocket.Conn }

func openWebSocket(ctx context.Context, plan Plan) (caller, error) {
	dialer := websocket.Dialer{HandshakeTimeout: plan.within()}
	conn, response, err := dialer.DialContext(ctx, "ws://"+plan.Target+"/ws", nil)
	if err != nil {
		if response != nil {
			return nil, fmt.Errorf("status %d: %w", response.StatusCode, err)
		}
		return nil, err
	}
	return &talker{conn}, nil
}

func (t *talker) call(ctx context.Context, id string) (string, error) {
	deadline, _ := ctx.Deadline()
	_ = t.conn.SetReadDeadline(deadline)
	_ = t.conn.SetWriteDeadline(deadline)
	err := t.conn.WriteJSON(Message{ID: id})
	answer := Message{}
	if err == nil || errors.Is(err, websocket.ErrCloseSent) {
		err = t.conn.ReadJSON(&answer)
	}
	if websocket.IsCloseError(err, websocket.CloseGoingAway, websocket.CloseNormalClosure) {
		return "", errEnded
	}
	if err != nil {
		return "", err
	}
	if answer.ID != id {
		return "", fmt.Errorf("%w: %s for %s", errWrong, answer.ID, id)
	}
	return answer.Who, nil
}

func (t *talker) close() { _ = t.conn.Close() }

type greeted struct {
	conn   net.Conn
	reader *bufio.Reader
}

func openGreeted(ctx context.Context, plan Plan) (caller, error) {
	conn, err := dial(ctx, plan.Target)
	if err != nil {
		return nil, err
	}
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline)
	reader := bufio.NewReader(conn)
	line, err := reader.ReadString('\n')
	if err == nil && !strings.HasPrefix(line, "220 ") {
		err = fmt.Errorf("%w: %.80q in place of a greeting", errWrong, line)
	}
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("before the greeting: %w", err)
	}
	return &greeted{conn, reader}, nil
}

func (g *greeted) call(ctx context.Context, id string) (string, error) {
	deadline, _ := ctx.Deadline()
	_ = g.conn.SetDeadline(deadline)
	if _, err := fmt.Fprintf(g.conn, "%s\n", id); err != nil {
		return "", err
	}
	line, err := g.reader.ReadString('\n')
	if strings.HasPrefix(line, "421 ") {
		return "", errEnded
	}
	if err != nil {
		return "", err
	}
	words := strings.Fields(line)
	if len(words) != 3 || words[0] != "250" || words[2] != id {
		return "", fmt.Errorf("%w: %.80q", errWrong, line)
	}
	return words[1], nil
}

func (g *greeted) close() { _ = g.conn.Close() }

// rpc is a gRPC channel; what it asks depends on the kind. Retries are grpc-go's own: only what was never processed.
type rpc struct {
	conn   *grpc.ClientConn
	kind   string
	stream grpc.ClientStream
	end    context.CancelFunc
}

func openRPC(plan Plan) (caller, error) {
	conn, err := grpc.NewClient("dns:///"+plan.Target, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(plain{})), grpc.WithDisableServiceConfig())
	if err != nil {
		return nil, err
	}
	return &rpc{conn: conn, kind: plan.Kind, end: func() {}}, nil
}

func (r *rpc) call(ctx context.Context, id string) (string, error) {
	asked, answer := &Message{ID: id}, new(Message)
	var err error
	switch r.kind {
	case "one":
		err = r.conn.Invoke(ctx, "/"+service+"/One", asked, answer)
	case "chain":
		err = r.conn.Invoke(ctx, "/"+service+"/Chain", asked, answer)
		if err == nil && len(answer.Via) != 4 { // itself, prices, prices' stock, stock
			err = fmt.Errorf("%w: by way of %v", errWrong, answer.Via)
		}
	case "count":
		return r.count(ctx, asked, &countStream, 1)
	case "through":
		return r.count(ctx, asked, &throughStream, 2) // prices' stock, and stock
	case "chat":
		return r.chat(ctx, asked)
	default:
		err = fmt.Errorf("no kind %q", r.kind)
	}
	if err == nil && answer.ID != id {
		err = fmt.Errorf("%w: %s for %s", errWrong, answer.ID, id)
	}
	return answer.Who, err
}

// count asks for a stream of ten messages, so many times, all of which have to come, in order and from one server.
func (r *rpc) count(ctx context.Context, asked *Message, method *grpc.StreamDesc, times int) (string, error) {
	asked.Count, asked.Gap = 10, 50
	stream, err := r.conn.NewStream(ctx, method, "/"+service+"/"+method.StreamName)
	if err != nil {
		return "", err
	}
	if err := stream.SendMsg(asked); err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	if err := stream.CloseSend(); err != nil {
		return "", err
	}
	who := ""
	for index := 0; ; index++ {
		got := new(Message)
		switch err := stream.RecvMsg(got); {
		case errors.Is(err, io.EOF) && index == asked.Count*times:
			return who, nil
		case errors.Is(err, io.EOF):
			return "", fmt.Errorf("%w: a stream of %d messages in place of %d", errWrong, index, asked.Count*times)
		case err != nil:
			return "", fmt.Errorf("%w (after %d messages)", err, index)
		case got.ID != asked.ID || got.Index != index%asked.Count || (who != "" && got.Who != who):
			return "", fmt.Errorf("%w: message %d of %s as number %d", errWrong, got.Index, got.ID, index)
		}
		who = got.Who
	}
}

// chat has one stream for good, on which each message is answered.
func (r *rpc) chat(ctx context.Context, asked *Message) (string, error) {
	if r.stream == nil {
		whole, end := context.WithCancel(context.Background())
		r.end = end
		stream, err := r.conn.NewStream(whole, &chatStream, "/"+service+"/Chat")
		if err != nil {
			return "", err
		}
		r.stream = stream
	}
	// The stream outlives this message's deadline, which ends the stream only if it is missed.
	deadline, _ := ctx.Deadline()
	defer time.AfterFunc(time.Until(deadline), r.end).Stop()
	got := new(Message)
	if err := r.stream.SendMsg(asked); err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	err := r.stream.RecvMsg(got)
	if errors.Is(err, io.EOF) {
		return "", errEnded
	}
	if err == nil && got.ID != asked.ID {
		err = fmt.Errorf("%w: %s for %s", errWrong, got.ID, asked.ID)
	}
	return got.Who, err
}

func (r *rpc) close() {
	r.end()
	_ = r.conn.Close()
}
