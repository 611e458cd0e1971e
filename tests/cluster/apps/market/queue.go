package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"
)

// queue puts jobs into a list of Redis, and sees that each is done once: twice is wrong, never is stuck.
// What the workers have done, they put into the list `done`.
func queue(ctx context.Context, plan Plan, prefix string, told *report) {
	ticks := time.NewTicker(time.Duration(max(plan.Every, 1)) * time.Millisecond)
	defer ticks.Stop()
	open := map[string]time.Time{} // jobs that nobody has done yet
	done := map[string]bool{}
	var store *redis
	failed := func(at time.Time, kind, text string) {
		told.failed(Failure{plan.Name, epoch(at), time.Since(at).Seconds(), kind, text, epoch(at), 0})
	}
	for number := 0; ; number++ {
		select {
		case <-ctx.Done():
			return
		case <-ticks.C:
		}
		began := time.Now()
		id := fmt.Sprintf("%s-%d", prefix, number)
		err := func() error {
			if store == nil {
				conn, err := dial(ctx, plan.Target)
				if err != nil {
					return err
				}
				store = &redis{conn, bufio.NewReader(conn)}
			}
			_ = store.conn.SetDeadline(began.Add(5 * time.Second))
			if _, err := store.ask("RPUSH", "jobs", id); err != nil {
				return err
			}
			open[id] = began
			for {
				got, err := store.ask("LPOP", "done")
				if err != nil || got == "" {
					return err
				}
				var job Message
				if json.Unmarshal([]byte(got), &job) != nil {
					return fmt.Errorf("not a job: %q", got)
				}
				if at, ok := open[job.ID]; ok {
					delete(open, job.ID)
					told.answered(plan.Name, job.Who, at)
				} else if done[job.ID] {
					failed(began, "wrong", fmt.Sprintf("%s was done twice, now by %s", job.ID, job.Who))
				}
				done[job.ID] = true
			}
		}()
		if err != nil && ctx.Err() == nil {
			failed(began, "failed", said(err))
			if store != nil {
				_ = store.conn.Close()
			}
			store = nil
		}
		for id, at := range open {
			if time.Since(at) > plan.within() {
				failed(at, "stuck", "nobody has done "+id)
				delete(open, id)
			}
		}
	}
}

type redis struct {
	conn   net.Conn
	reader *bufio.Reader
}

// ask says one command; the answer is a number or a string, and empty for none (RESP 2).
func (r *redis) ask(words ...string) (string, error) {
	var text strings.Builder
	fmt.Fprintf(&text, "*%d\r\n", len(words))
	for _, each := range words {
		fmt.Fprintf(&text, "$%d\r\n%s\r\n", len(each), each)
	}
	if _, err := io.WriteString(r.conn, text.String()); err != nil {
		return "", err
	}
	line, err := r.reader.ReadString('\n')
	if err != nil {
		return "", err
	}
	line = strings.TrimSpace(line)
	switch line[0] {
	case '-':
		return "", errors.New(line)
	case '$':
		size, err := strconv.Atoi(line[1:])
		if err != nil || size < 0 {
			return "", err
		}
		data := make([]byte, size+2)
		_, err = io.ReadFull(r.reader, data)
		return string(data[:size]), err
	default:
		return line[1:], nil
	}
}
