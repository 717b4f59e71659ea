// Command go-control-plane is the peer in Weft's xDS benchmark: a management server made of Envoy's own Go library,
// github.com/envoyproxy/go-control-plane (Apache-2.0, as Weft is), which meshes and gateways build on. It is no part of
// Weft; only the benchmark builds it:
//
//	e2e/scripts/go-control-plane        # into target/bench/go-control-plane; runs its test and `go vet` with --check
//
// It serves svc-0 .. svc-(N-1), each a cluster with K endpoints of the form and size that Weft makes, and one listener
// with one route configuration, to every proxy that connects; the node and the authorisation are not looked at. There
// are no secrets: a subscription to them stays open.
//
//	go-control-plane --listen 127.0.0.1:0 --control 127.0.0.1:0 --cache snapshot|linear
//	    --services N --endpoints-per-service K [--tls-cert FILE --tls-key FILE]
//
// It prints one line when it is ready, {"xds":"127.0.0.1:PORT","control":"127.0.0.1:PORT"}, and is silent then.
//
//	GET  /ready                      200
//	POST /change?service=I&value=V   sets the port of svc-I's first endpoint to V; 200 and the cache's new version once
//	                                 the cache has taken it and woken its watches
//	GET  /memory                     collects garbage, gives free memory back, and tells what is live
//
// The comparison should be with the library at its best, so what its documentation, code and issues say of speed is
// followed:
//
//   - one snapshot for all proxies (a constant NodeHash; issues 62 and 302), not one a proxy; ads = true;
//   - a change gives a new version to the endpoints only, so that nothing else is sent again (state of the world);
//   - LinearCache is given changes by UpdateResources, never SetResources, which takes all as changed (pulls 546, 547);
//     no version prefix, which is for replicas;
//   - changes that arrive while another is published are published together;
//   - no logger, no callbacks: neither cache nor server writes or counts anything per request;
//   - keepalive and MaxConcurrentStreams as in the library's example server; the other gRPC defaults, which now
//     share the write buffers (64 KB less for an idle connection; grpc-go pull 8957);
//   - Go's defaults for the collector.
//
// What is left out: `-tags vtprotobuf`, as the library marshals with the standard package whatever the tag (pull
// request 31172 of Envoy is for servers that call it themselves); and an own ResourceSnapshot that keeps hashes from one
// snapshot to the next, as only few users have one. The hashes are a cost of each change and not of each proxy: a few
// hundredths of the whole with 1,000 services and 1,000 proxies (`go test -run - -bench .` tells).
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
)

// The values of internal/example/server.go in the library.
const (
	keepaliveTime        = 30 * time.Second
	keepaliveTimeout     = 5 * time.Second
	keepaliveMinTime     = 30 * time.Second
	maxConcurrentStreams = 1_000_000
)

type options struct {
	listen, control, cache string
	services, endpoints    int
	tlsCert, tlsKey        string
}

func main() {
	var o options
	flag.StringVar(&o.listen, "listen", "127.0.0.1:0", "address of the xDS server")
	flag.StringVar(&o.control, "control", "127.0.0.1:0", "address of the HTTP control")
	flag.StringVar(&o.cache, "cache", "snapshot", "snapshot or linear")
	flag.IntVar(&o.services, "services", 1000, "how many services")
	flag.IntVar(&o.endpoints, "endpoints-per-service", 2, "how many endpoints each has")
	flag.StringVar(&o.tlsCert, "tls-cert", "", "PEM file of the certificate chain; without it, in clear")
	flag.StringVar(&o.tlsKey, "tls-key", "", "PEM file of the certificate's key")
	flag.Parse()
	if err := run(context.Background(), o, func(xds, control net.Addr) {
		fmt.Printf("{\"xds\":%q,\"control\":%q}\n", xds, control)
	}); err != nil {
		log.Fatal(err)
	}
}

// run serves until ctx is done, and calls ready once both addresses are open.
func run(ctx context.Context, o options, ready func(xds, control net.Addr)) error {
	if o.services < 1 || o.endpoints < 1 {
		return errors.New("--services and --endpoints-per-service: say 1 or more")
	}
	publisher, err := newPublisher(o.cache, o.services, o.endpoints)
	if err != nil {
		return err
	}
	xds, err := newXDS(ctx, o, publisher.cache())
	if err != nil {
		return err
	}
	xdsListener, err := net.Listen("tcp", o.listen)
	if err != nil {
		return err
	}
	controlListener, err := net.Listen("tcp", o.control)
	if err != nil {
		return err
	}
	changes := make(chan change, 1024)
	go apply(publisher, o.endpoints, changes)
	controlServer := &http.Server{Handler: control(o.services, changes)}

	failed := make(chan error, 2)
	go func() { failed <- xds.Serve(xdsListener) }()
	go func() { failed <- controlServer.Serve(controlListener) }()
	defer xds.Stop()
	defer controlServer.Close()
	ready(xdsListener.Addr(), controlListener.Addr())
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
		return nil
	}
}

func newXDS(ctx context.Context, o options, from cache.Cache) (*grpc.Server, error) {
	serverOptions := []grpc.ServerOption{
		grpc.MaxConcurrentStreams(maxConcurrentStreams),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: keepaliveTime, Timeout: keepaliveTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{
			MinTime:             keepaliveMinTime,
			PermitWithoutStream: true,
		}),
	}
	if o.tlsCert != "" || o.tlsKey != "" {
		certificate, err := tls.LoadX509KeyPair(o.tlsCert, o.tlsKey)
		if err != nil {
			return nil, fmt.Errorf("--tls-cert and --tls-key: %w", err)
		}
		serverOptions = append(serverOptions, grpc.Creds(credentials.NewTLS(&tls.Config{
			Certificates: []tls.Certificate{certificate},
			MinVersion:   tls.VersionTLS13,
		})))
	}
	// Both ADS methods, StreamAggregatedResources and DeltaAggregatedResources.
	registered := grpc.NewServer(serverOptions...)
	discovery.RegisterAggregatedDiscoveryServiceServer(registered, server.NewServer(ctx, from, nil))
	return registered, nil
}
