// link is a slow and lossy wire between this network namespace and another one.
//
//	link -peer PID -name DEVICE -here 198.18.1.1/30 -there 198.18.1.2/30
//
// It makes a TUN device in each, and carries packets between them. It reads lines on standard input:
//
//	set DELAY LOSS MBIT   a one-way delay (Go duration), a share of packets to lose (0..1) and a rate
//	                      per direction in megabit/s (0 is no limit)
//	cut | mend            every packet is lost, in silence, until mend
//
// and answers each with "ok", or "error ..." It ends when standard input does; the devices go with it.
//
// Why not tc netem: many kernels for virtual machines are built without it. TUN is in all of them.
// While nothing is lost, segmentation offload is on, so that one read carries up to 64 KiB and the wire
// is not what a throughput test measures; with loss it is off, so that what is lost is a packet of the
// size that would be lost on a real path.
package main

import (
	"bufio"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

const (
	tunSetIff     = 0x400454ca
	tunSetOffload = 0x400454d0
	iffTun        = 0x0001
	iffNoPI       = 0x1000
	iffVnetHdr    = 0x4000
	offloads      = 0x01 | 0x02 | 0x04 // checksum, TSO4, TSO6
	// A queue longer than any test's bandwidth times delay: what overflows it is a lost packet.
	queueLength = 65536
)

// The number of setns(2): package syscall has none for amd64.
var setnsCall = map[string]uintptr{"amd64": 308, "arm64": 268}[runtime.GOARCH]

// wire is the state that both directions share; it is read for each packet and written seldom.
type wire struct {
	delay atomic.Int64 // nanoseconds, one way
	loss  atomic.Int64 // per million
	rate  atomic.Int64 // bytes per second, 0 for no limit
	cut   atomic.Bool
}

type packet struct {
	due  time.Time
	data []byte
}

func ioctl(fd int, request uintptr, argument uintptr) error {
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), request, argument); errno != 0 {
		return errno
	}
	return nil
}

func openTun(name string) (int, error) {
	fd, err := syscall.Open("/dev/net/tun", syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("/dev/net/tun: %w", err)
	}
	var request struct {
		name  [16]byte
		flags uint16
		_     [22]byte
	}
	copy(request.name[:15], name)
	request.flags = iffTun | iffNoPI | iffVnetHdr
	if err := ioctl(fd, tunSetIff, uintptr(unsafe.Pointer(&request))); err != nil {
		return -1, fmt.Errorf("making the device %s: %w", name, err)
	}
	return fd, nil
}

func run(arguments ...string) error {
	if out, err := exec.Command(arguments[0], arguments[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(arguments, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

func prepare(name, address string) (int, error) {
	fd, err := openTun(name)
	if err != nil {
		return -1, err
	}
	for _, command := range [][]string{
		{"ip", "address", "add", address, "dev", name},
		{"ip", "link", "set", name, "up", "txqueuelen", "10000"},
	} {
		if err := run(command...); err != nil {
			return -1, err
		}
	}
	return fd, nil
}

// prepareThere makes the far device in the network namespace of another process. The thread that enters
// the namespace is never given back to the runtime: it ends with its goroutine.
func prepareThere(pid int, name, address string) (int, error) {
	type answer struct {
		fd  int
		err error
	}
	answers := make(chan answer)
	go func() {
		runtime.LockOSThread()
		namespace, err := syscall.Open(fmt.Sprintf("/proc/%d/ns/net", pid), syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
		if err == nil {
			if _, _, errno := syscall.RawSyscall(setnsCall, uintptr(namespace), syscall.CLONE_NEWNET, 0); errno != 0 {
				err = errno
			}
		}
		if err != nil {
			answers <- answer{-1, fmt.Errorf("entering the network namespace of process %d: %w", pid, err)}
			return
		}
		fd, err := prepare(name, address)
		answers <- answer{fd, err}
	}()
	result := <-answers
	return result.fd, result.err
}

func (w *wire) carry(from, to int) {
	queue := make(chan packet, queueLength)
	go func() {
		for each := range queue {
			if wait := time.Until(each.due); wait > 0 {
				time.Sleep(wait)
			}
			// A write fails when the device at that end is down: for a wire that is a lost packet.
			_, _ = syscall.Write(to, each.data)
		}
	}()
	buffer := make([]byte, 10+65535)
	free := time.Now() // when the last packet has left, at the rate asked for
	for {
		n, err := syscall.Read(from, buffer)
		if err == syscall.EINTR || err == syscall.EAGAIN || err == syscall.EIO {
			continue
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "link: reading: %v\n", err)
			os.Exit(1)
		}
		if w.cut.Load() || rand.Int64N(1_000_000) < w.loss.Load() {
			continue
		}
		now := time.Now()
		if rate := w.rate.Load(); rate > 0 {
			if free.Before(now) {
				free = now
			}
			free = free.Add(time.Duration(int64(n) * int64(time.Second) / rate))
			now = free
		}
		due := now.Add(time.Duration(w.delay.Load()))
		select {
		case queue <- packet{due, append([]byte(nil), buffer[:n]...)}:
		default:
		}
	}
}

func (w *wire) command(line string, fds ...int) error {
	words := strings.Fields(line)
	switch {
	case len(words) == 1 && words[0] == "cut":
		w.cut.Store(true)
	case len(words) == 1 && words[0] == "mend":
		w.cut.Store(false)
	case len(words) == 4 && words[0] == "set":
		delay, err := time.ParseDuration(words[1])
		if err != nil {
			return err
		}
		var loss, megabit float64
		if _, err := fmt.Sscan(words[2]+" "+words[3], &loss, &megabit); err != nil {
			return err
		}
		offload := uintptr(offloads)
		if loss > 0 {
			offload = 0
		}
		for _, fd := range fds {
			if err := ioctl(fd, tunSetOffload, offload); err != nil {
				return fmt.Errorf("segmentation offload: %w", err)
			}
		}
		w.delay.Store(int64(delay))
		w.loss.Store(int64(loss * 1_000_000))
		w.rate.Store(int64(megabit * 1_000_000 / 8))
	default:
		return fmt.Errorf("unknown command %q", line)
	}
	return nil
}

func main() {
	peer := flag.Int("peer", 0, "a process in the other network namespace")
	name := flag.String("name", "", "the device's name, at both ends")
	here := flag.String("here", "", "the address at this end, with its prefix")
	there := flag.String("there", "", "the address at the other end, with its prefix")
	flag.Parse()

	near, err := prepare(*name, *here)
	if err == nil {
		var far int
		if far, err = prepareThere(*peer, *name, *there); err == nil {
			var w wire
			go w.carry(near, far)
			go w.carry(far, near)
			fmt.Println("ok")
			for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
				if err := w.command(lines.Text(), near, far); err != nil {
					fmt.Println("error", err)
				} else {
					fmt.Println("ok")
				}
			}
			return
		}
	}
	fmt.Fprintln(os.Stderr, "link:", err)
	os.Exit(1)
}
