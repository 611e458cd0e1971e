// The agent that enforces NetworkPolicies on the test cluster's node: sigs.k8s.io/kube-network-policies.
//
// The first packet of each connection from or to a pod that a policy selects waits in an nfqueue for the agent's
// verdict; all other packets pass by. Upstream's own rules take nftables' `queue`. Kernels without it (CONFIG_NFT_QUEUE)
// may have iptables' target NFQUEUE, which nftables can load too: then the rules are the ones below.
//
//	policies KUBECONFIG NODE
package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	networklisters "k8s.io/client-go/listers/networking/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/kube-network-policies/pkg/networkpolicy"
)

const (
	queue     = 100
	tableName = "devloop-test-policies"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintf(os.Stderr, "policies: %v\n", err)
		os.Exit(1)
	}
}

func run() error {
	ctx, cancel := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer cancel()
	config, err := clientcmd.BuildConfigFromFlags("", os.Args[1])
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	pods, namespaces := factory.Core().V1().Pods(), factory.Core().V1().Namespaces()
	policies := factory.Networking().V1().NetworkPolicies()
	controller, err := networkpolicy.NewController(
		client, policies, namespaces, pods, nil, nil, nil, nil,
		networkpolicy.Config{QueueID: queue, NodeName: os.Args[2]},
	)
	if err != nil {
		return err
	}
	if !hasQueue() {
		rules := &rules{pods.Lister(), policies.Lister(), make(chan struct{}, 1)}
		for _, each := range []cache.SharedIndexInformer{pods.Informer(), policies.Informer()} {
			if _, err := each.AddEventHandler(cache.ResourceEventHandlerFuncs{
				AddFunc:    func(any) { rules.changed() },
				UpdateFunc: func(any, any) { rules.changed() },
				DeleteFunc: func(any) { rules.changed() },
			}); err != nil {
				return err
			}
		}
		go rules.keep(ctx, pods.Informer().HasSynced, policies.Informer().HasSynced)
	}
	factory.Start(ctx.Done())
	return controller.Run(ctx)
}

// hasQueue says whether nftables has `queue` here, by asking for a rule with it in a table that goes again.
func hasQueue() bool {
	connection, err := nftables.New()
	if err != nil {
		return false
	}
	table := connection.AddTable(&nftables.Table{Name: tableName + "-probe", Family: nftables.TableFamilyIPv4})
	chain := connection.AddChain(&nftables.Chain{Name: "probe", Table: table})
	connection.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{&expr.Queue{Num: queue}}})
	connection.DelTable(table)
	return connection.Flush() == nil
}

type rules struct {
	pods     corelisters.PodLister
	policies networklisters.NetworkPolicyLister
	dirty    chan struct{}
}

func (r *rules) changed() {
	select {
	case r.dirty <- struct{}{}:
	default:
	}
}

// keep makes the rules anew whenever a pod or a policy has changed and the rules follow from other addresses.
func (r *rules) keep(ctx context.Context, synced ...cache.InformerSynced) {
	cache.WaitForCacheSync(ctx.Done(), synced...)
	last := "none yet"
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.dirty:
		}
		addresses, err := r.addresses()
		if now := fmt.Sprint(addresses); err == nil && now != last {
			if err = errors.Join(set(addresses, nftables.TableFamilyIPv4), set(addresses, nftables.TableFamilyIPv6)); err == nil {
				last = now
			}
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "policies: %v\n", err)
			time.Sleep(time.Second)
			r.changed()
		}
	}
}

// addresses are those of the pods of all namespaces with a policy; the verdict on each connection is upstream's.
func (r *rules) addresses() ([]netip.Addr, error) {
	policies, err := r.policies.List(labels.Everything())
	if err != nil {
		return nil, err
	}
	namespaces := map[string]bool{}
	for _, each := range policies {
		namespaces[each.Namespace] = true
	}
	pods, err := r.pods.List(labels.Everything())
	if err != nil {
		return nil, err
	}
	seen := map[netip.Addr]bool{}
	for _, pod := range pods {
		over := pod.Status.Phase == v1.PodSucceeded || pod.Status.Phase == v1.PodFailed
		if !namespaces[pod.Namespace] || pod.Spec.HostNetwork || over {
			continue
		}
		for _, each := range pod.Status.PodIPs {
			if address, err := netip.ParseAddr(each.IP); err == nil {
				seen[address] = true
			}
		}
	}
	found := make([]netip.Addr, 0, len(seen))
	for each := range seen {
		found = append(found, each)
	}
	slices.SortFunc(found, netip.Addr.Compare)
	return found, nil
}

// set replaces one family's table, in one transaction. They are upstream's rules (syncNFTablesRules) with another target.
func set(addresses []netip.Addr, family nftables.TableFamily) error {
	connection, err := nftables.New()
	if err != nil {
		return err
	}
	table := &nftables.Table{Name: tableName, Family: family}
	connection.AddTable(table)
	connection.DelTable(table)
	v4 := family == nftables.TableFamilyIPv4
	kind, source, destination, length := nftables.TypeIPAddr, uint32(12), uint32(16), uint32(4)
	if !v4 {
		kind, source, destination, length = nftables.TypeIP6Addr, 8, 24, 16
	}
	var elements []nftables.SetElement
	for _, each := range addresses {
		if each.Is4() == v4 {
			elements = append(elements, nftables.SetElement{Key: each.AsSlice()})
		}
	}
	if len(elements) == 0 {
		return connection.Flush()
	}
	connection.AddTable(table)
	pods := &nftables.Set{Table: table, Name: "pods", KeyType: kind}
	if err := connection.AddSet(pods, elements); err != nil {
		return err
	}
	chain := connection.AddChain(&nftables.Chain{
		Name: "postrouting", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPostrouting,
		Priority: nftables.ChainPriorityRef(*nftables.ChainPriorityNATSource - 5),
	})
	accept := &expr.Verdict{Kind: expr.VerdictAccept}
	known := binaryutil.NativeEndian.PutUint32(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED)
	// struct xt_NFQ_info_v3: number, how many, flags.
	info := xt.Unknown(slices.Concat(
		binaryutil.NativeEndian.PutUint16(queue), binaryutil.NativeEndian.PutUint16(1), []byte{0, 0},
	))
	target := &expr.Target{Name: "NFQUEUE", Rev: 3, Info: &info}
	toQueue := func(offset uint32) []expr.Any {
		return []expr.Any{
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length},
			&expr.Lookup{SourceRegister: 1, SetName: pods.Name, SetID: pods.ID},
			target,
		}
	}
	for _, each := range [][]expr.Any{
		// The node's own programs: the kubelet's probes.
		{
			&expr.Meta{Key: expr.MetaKeySKUID, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{0, 0, 0, 0}},
			accept,
		},
		// Neighbor discovery, without which IPv6 finds nobody.
		{
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_ICMPV6}},
			accept,
		},
		{
			&expr.Ct{Register: 1, Key: expr.CtKeySTATE},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: known, Xor: []byte{0, 0, 0, 0}},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{0, 0, 0, 0}},
			accept,
		},
		toQueue(source),
		toQueue(destination),
	} {
		connection.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: each})
	}
	return connection.Flush()
}
