package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/gorilla/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
)

// A server that ends as a good one does: on SIGTERM it is asked no more ($DRAIN seconds, in which its endpoint goes),
// tells each client to go elsewhere in its protocol's own words, and ends when they have.
type server struct {
	who      string
	backends []*grpc.ClientConn
	draining chan struct{} // closed: whoever is connected is to go elsewhere
	held     sync.WaitGroup
}

func setting(name, fallback string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return fallback
}

func serve() {
	host, _ := os.Hostname()
	s := &server{who: setting("WHO", host), draining: make(chan struct{})}
	for _, each := range strings.Fields(os.Getenv("BACKENDS")) {
		conn, err := grpc.NewClient("dns:///"+each, grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithDefaultCallOptions(grpc.ForceCodec(plain{})))
		if err != nil {
			log.Fatal(err)
		}
		s.backends = append(s.backends, conn)
	}
	// SIGTERM is heard before anything listens: a pod may be asked to end as soon as it is ready.
	ending := make(chan os.Signal, 1)
	signal.Notify(ending, syscall.SIGTERM, syscall.SIGINT)

	mux := http.NewServeMux()
	mux.HandleFunc("/ws", s.websocket)
	mux.HandleFunc("/", s.http)
	web := &http.Server{Handler: mux}
	rpc := grpc.NewServer(grpc.ForceServerCodec(plainOrProto{}), grpc.KeepaliveEnforcementPolicy(
		keepalive.EnforcementPolicy{MinTime: time.Second, PermitWithoutStream: true}))
	rpc.RegisterService(&description, s)
	well := health.NewServer() // the kubelet's gRPC probe asks it
	grpc_health_v1.RegisterHealthServer(rpc, well)

	var listeners []net.Listener
	for name, start := range map[string]func(net.Listener){
		"HTTP":  func(on net.Listener) { _ = web.Serve(on) },
		"GRPC":  func(on net.Listener) { _ = rpc.Serve(on) },
		"GREET": s.greet,
	} {
		port := os.Getenv(name)
		if port == "" {
			continue
		}
		on, err := net.Listen("tcp", ":"+port)
		if err != nil {
			log.Fatal(err)
		}
		listeners = append(listeners, on)
		go start(on)
	}
	fmt.Println("serves as", s.who)
	<-ending
	seconds, _ := strconv.ParseFloat(setting("DRAIN", "0"), 64)
	time.Sleep(time.Duration(seconds * float64(time.Second))) // until nobody new is led here
	close(s.draining)
	time.Sleep(time.Duration(min(seconds, 1) * float64(time.Second))) // each keep-alive client asks once in that time
	within, stop := context.WithTimeout(context.Background(), 5*time.Second)
	defer stop()
	ended := make(chan struct{})
	go func() {
		rpc.GracefulStop()
		_ = web.Shutdown(within)
		s.held.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-within.Done():
	}
	_ = listeners
}

// plainOrProto speaks JSON with the trial's messages and protocol buffers with the health service's.
type plainOrProto struct{ plain }

func (c plainOrProto) Marshal(value any) ([]byte, error) {
	if message, ok := value.(*grpc_health_v1.HealthCheckResponse); ok {
		return []byte{8, byte(message.GetStatus())}, nil // field 1, a varint
	}
	return c.plain.Marshal(value)
}

func (c plainOrProto) Unmarshal(data []byte, value any) error {
	if _, ok := value.(*grpc_health_v1.HealthCheckRequest); ok {
		return nil // asked for the whole server
	}
	return c.plain.Unmarshal(data, value)
}

func (s *server) drains() bool {
	select {
	case <-s.draining:
		return true
	default:
		return false
	}
}

func (s *server) http(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	if r.URL.Path == "/ready" && s.drains() {
		http.Error(w, "draining", http.StatusServiceUnavailable)
		return
	}
	if s.drains() {
		w.Header().Set("Connection", "close")
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{
		"who": s.who, "id": r.Header.Get("X-Id"), "method": r.Method, "length": len(body),
	})
}

func (s *server) websocket(w http.ResponseWriter, r *http.Request) {
	upgrader := websocket.Upgrader{}
	conn, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return
	}
	defer conn.Close()
	s.held.Add(1)
	defer s.held.Done()
	over := make(chan struct{})
	defer close(over)
	go func() {
		select {
		case <-s.draining:
			going := websocket.FormatCloseMessage(websocket.CloseGoingAway, s.who)
			_ = conn.WriteControl(websocket.CloseMessage, going, time.Now().Add(time.Second))
			_ = conn.SetReadDeadline(time.Now().Add(2 * time.Second))
		case <-over:
		}
	}()
	for {
		kind, data, err := conn.ReadMessage()
		if err != nil {
			return
		}
		answer := Message{}
		_ = json.Unmarshal(data, &answer)
		answer.Who = s.who
		data, _ = json.Marshal(answer)
		if conn.WriteMessage(kind, data) != nil {
			return
		}
	}
}

// greet speaks first, as SMTP, MySQL and SSH do; then it answers each line.
func (s *server) greet(on net.Listener) {
	for {
		conn, err := on.Accept()
		if err != nil {
			return
		}
		s.held.Add(1)
		go func() {
			defer s.held.Done()
			defer conn.Close()
			fmt.Fprintf(conn, "220 %s\n", s.who)
			over := make(chan struct{})
			defer close(over)
			go func() {
				select {
				case <-s.draining:
					_, _ = io.WriteString(conn, "421 going away\n")
					_ = conn.(*net.TCPConn).CloseWrite()
					_ = conn.SetReadDeadline(time.Now().Add(2 * time.Second))
				case <-over:
				}
			}()
			lines := bufio.NewScanner(conn)
			for lines.Scan() {
				if s.drains() {
					continue // 421 is said, and what comes after it is not taken
				}
				fmt.Fprintf(conn, "250 %s %s\n", s.who, lines.Text())
			}
		}()
	}
}

func (s *server) one(_ context.Context, asked *Message) (*Message, error) {
	return &Message{ID: asked.ID, Who: s.who}, nil
}

// chain asks every backend in its turn, and gives their answers back with its own.
func (s *server) chain(ctx context.Context, asked *Message) (*Message, error) {
	answer := &Message{ID: asked.ID, Who: s.who, Via: []string{s.who}}
	for _, each := range s.backends {
		got := new(Message)
		if err := each.Invoke(ctx, "/"+service+"/Chain", asked, got); err != nil {
			return nil, err
		}
		if got.ID != asked.ID {
			return nil, errors.New("a backend has answered somebody else's call")
		}
		answer.Via = append(answer.Via, got.Via...)
	}
	return answer, nil
}

func (s *server) count(asked *Message, stream grpc.ServerStream) error {
	for index := range asked.Count {
		if err := stream.SendMsg(&Message{ID: asked.ID, Index: index, Who: s.who}); err != nil {
			return err
		}
		time.Sleep(time.Duration(asked.Gap) * time.Millisecond)
	}
	return nil
}

// through hands on what each backend streams, one after the other, as it comes; who has no backends counts.
func (s *server) through(asked *Message, stream grpc.ServerStream) error {
	if len(s.backends) == 0 {
		return s.count(asked, stream)
	}
	for _, each := range s.backends {
		if err := s.handOn(each, asked, stream); err != nil {
			return err
		}
	}
	return nil
}

func (s *server) handOn(backend *grpc.ClientConn, asked *Message, to grpc.ServerStream) error {
	from, err := backend.NewStream(to.Context(), &throughStream, "/"+service+"/Through")
	if err != nil {
		return err
	}
	if err := from.SendMsg(asked); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if err := from.CloseSend(); err != nil {
		return err
	}
	for {
		got := new(Message)
		if err := from.RecvMsg(got); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		got.Who = s.who
		if err := to.SendMsg(got); err != nil {
			return err
		}
	}
}

// chat answers each message; a server that drains ends the stream with OK, and what it has read is answered before.
func (s *server) chat(stream grpc.ServerStream) error {
	type read struct {
		message *Message
		err     error
	}
	heard := make(chan read)
	over := make(chan struct{})
	defer close(over)
	go func() {
		for {
			message := new(Message)
			err := stream.RecvMsg(message)
			select {
			case heard <- read{message, err}:
			case <-over:
				return
			}
			if err != nil {
				return
			}
		}
	}()
	for {
		select {
		case <-s.draining:
			return nil
		case got := <-heard:
			if got.err != nil {
				return nil
			}
			got.message.Who = s.who
			if err := stream.SendMsg(got.message); err != nil {
				return err
			}
		}
	}
}
