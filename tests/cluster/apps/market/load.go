package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"
)

// Plan is one kind of client, so many of it side by side.
type Plan struct {
	Name        string            `json:"name"`
	Kind        string            `json:"kind"` // http, ws, greet, one, chain, count, through, chat, queue
	Target      string            `json:"target"`
	Held        bool              `json:"held"` // one connection for good; else a new one for each request
	Connections int               `json:"connections"`
	Every       int               `json:"every"` // milliseconds between two requests of one connection
	Method      string            `json:"method"`
	Headers     map[string]string `json:"headers"`
	Deadline    float64           `json:"deadline"` // seconds after which a connection counts as stuck
}

var (
	errEnded = errors.New("ended") // the server said, in the protocol's own words, that it goes: no failure
	errWrong = errors.New("wrong answer")
)

// A caller is one connection of one client.
type caller interface {
	call(ctx context.Context, id string) (who string, err error)
	close()
}

// Failure is one request that was not answered as it should be: one line of the output.
type Failure struct {
	Client string  `json:"client"`
	At     float64 `json:"at"` // when it was asked, seconds since the epoch
	Took   float64 `json:"took"`
	Kind   string  `json:"kind"` // failed, stuck, wrong
	Error  string  `json:"error"`
	Opened float64 `json:"opened"` // when its connection was made
	Calls  int     `json:"calls"`  // how many that connection had answered before
}

// Some is what one client had within half a second: the other kind of line.
type Some struct {
	Client string         `json:"client"`
	Since  float64        `json:"since"` // when the first of these requests was asked
	Until  float64        `json:"until"` // when this was written down
	OK     int            `json:"ok"`
	Ended  int            `json:"ended,omitempty"` // connections that the server ended in order
	Who    map[string]int `json:"who"`
	Slow   float64        `json:"slow"` // the slowest answer's seconds
}

type report struct {
	sync.Mutex
	out  *json.Encoder
	some map[string]*Some
}

func epoch(at time.Time) float64 { return float64(at.UnixNano()) / 1e9 }

func (r *report) of(client string, asked time.Time) *Some {
	found := r.some[client]
	if found == nil {
		found = &Some{Client: client, Since: epoch(asked), Who: map[string]int{}}
		r.some[client] = found
	}
	found.Since = min(found.Since, epoch(asked))
	return found
}

func (r *report) answered(client, who string, asked time.Time) {
	r.Lock()
	defer r.Unlock()
	found := r.of(client, asked)
	found.OK++
	found.Who[who]++
	found.Slow = max(found.Slow, time.Since(asked).Seconds())
}

func (r *report) ended(client string) {
	r.Lock()
	defer r.Unlock()
	r.of(client, time.Now()).Ended++
}

func (r *report) failed(failure Failure) {
	r.Lock()
	defer r.Unlock()
	_ = r.out.Encode(failure)
}

func (r *report) flush() {
	r.Lock()
	defer r.Unlock()
	for name, found := range r.some {
		found.Until = epoch(time.Now())
		_ = r.out.Encode(found)
		delete(r.some, name)
	}
}

func load(file string) {
	text, err := os.ReadFile(file)
	if err != nil {
		log.Fatal(err)
	}
	var plans []Plan
	if err := json.Unmarshal(text, &plans); err != nil {
		log.Fatal(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	told := &report{out: json.NewEncoder(os.Stdout), some: map[string]*Some{}}
	var working sync.WaitGroup
	number := 0
	for _, plan := range plans {
		for range max(plan.Connections, 1) {
			number++
			prefix := fmt.Sprintf("%d-%d", os.Getpid(), number)
			work := loop
			if plan.Kind == "queue" {
				work = queue
			}
			working.Go(func() { work(ctx, plan, prefix, told) })
		}
	}
	ticks := time.NewTicker(time.Second / 2)
	for running := true; running; {
		select {
		case <-ticks.C:
		case <-ctx.Done():
			running = false
		}
		told.flush()
	}
	working.Wait()
	told.flush()
}

func (p Plan) within() time.Duration {
	if p.Deadline == 0 {
		return 10 * time.Second
	}
	return time.Duration(p.Deadline * float64(time.Second))
}

func loop(ctx context.Context, plan Plan, prefix string, told *report) {
	ticks := time.NewTicker(time.Duration(max(plan.Every, 1)) * time.Millisecond)
	defer ticks.Stop()
	var (
		held   caller
		opened time.Time
		calls  int
	)
	forget := func() {
		if held != nil {
			held.close()
			held = nil
		}
	}
	defer forget()
	for number := 0; ; {
		select {
		case <-ctx.Done():
			return
		case <-ticks.C:
		}
		again := true
		for tries := 0; again && tries < 3; tries++ {
			again = false
			number++
			id := fmt.Sprintf("%s-%d", prefix, number)
			began := time.Now()
			within, cancel := context.WithTimeout(ctx, plan.within())
			var who string
			var err error
			if held == nil {
				opened, calls = began, 0
				held, err = open(within, plan)
			}
			if err == nil {
				who, err = held.call(within, id)
			}
			late := within.Err() != nil
			cancel()
			switch {
			case ctx.Err() != nil:
				return // whatever it was, it was the end
			case err == nil:
				calls++
				told.answered(plan.Name, who, began)
			case errors.Is(err, errEnded):
				told.ended(plan.Name)
				forget()
				again = true // as a client does that was told to go elsewhere
				continue
			default:
				kind := "failed"
				if errors.Is(err, errWrong) {
					kind = "wrong"
				} else if late {
					kind = "stuck"
				}
				told.failed(Failure{plan.Name, epoch(began), time.Since(began).Seconds(), kind, said(err), epoch(opened), calls})
				forget()
			}
			if !plan.Held {
				forget()
			}
		}
	}
}
