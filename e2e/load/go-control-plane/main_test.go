package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/stream/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

const (
	services  = 20
	endpoints = 3
)

func TestDelta(t *testing.T) {
	for _, kind := range []string{"snapshot", "linear"} {
		t.Run(kind, func(t *testing.T) {
			client, control := start(t, kind)
			stream, err := client.DeltaAggregatedResources(proxyContext(t))
			must(t, err)
			send := func(request *discovery.DeltaDiscoveryRequest) {
				t.Helper()
				must(t, stream.Send(request))
			}
			receive := func(typeURL string) *discovery.DeltaDiscoveryResponse {
				t.Helper()
				response, err := stream.Recv()
				must(t, err)
				if response.GetTypeUrl() != typeURL {
					t.Fatalf("got %s, not %s", response.GetTypeUrl(), typeURL)
				}
				return response
			}
			ack := func(response *discovery.DeltaDiscoveryResponse) *discovery.DeltaDiscoveryRequest {
				return &discovery.DeltaDiscoveryRequest{TypeUrl: response.GetTypeUrl(), ResponseNonce: response.GetNonce()}
			}

			send(&discovery.DeltaDiscoveryRequest{Node: &core.Node{Id: "one"}, TypeUrl: resource.ClusterType})
			clusters := receive(resource.ClusterType)
			same(t, allServices(), names(clusters))
			// Envoy's sequence: the endpoints are subscribed to before the clusters are acknowledged.
			send(&discovery.DeltaDiscoveryRequest{TypeUrl: resource.EndpointType, ResourceNamesSubscribe: names(clusters)})
			send(ack(clusters))
			first := receive(resource.EndpointType)
			same(t, allServices(), names(first))
			send(ack(first))
			// Secrets are not served, and asking for them ends nothing.
			send(&discovery.DeltaDiscoveryRequest{TypeUrl: resource.SecretType, ResourceNamesSubscribe: []string{"workload"}})
			send(&discovery.DeltaDiscoveryRequest{TypeUrl: resource.ListenerType})
			listeners := receive(resource.ListenerType)
			same(t, []string{listenerName}, names(listeners))
			send(ack(listeners))
			send(&discovery.DeltaDiscoveryRequest{TypeUrl: resource.RouteType, ResourceNamesSubscribe: []string{routeName}})
			routes := receive(resource.RouteType)
			same(t, []string{routeName}, names(routes))
			send(ack(routes))

			// The response to the second change would show whatever else the first had sent.
			for round, service := range []int{7, 11} {
				port := uint32(9000 + round)
				if version := post(t, control, service, port); version != fmt.Sprintf("%d\n", round+1) {
					t.Fatalf("version %q of change %d", version, round+1)
				}
				changed := receive(resource.EndpointType)
				same(t, []string{serviceName(service)}, names(changed))
				same(t, []uint32{port, firstPort, firstPort}, ports(t, changed.GetResources()[0].GetResource()))
				send(ack(changed))
			}
		})
	}
}

func TestStateOfTheWorld(t *testing.T) {
	for kind, expected := range map[string]int{"snapshot": services, "linear": 1} {
		t.Run(kind, func(t *testing.T) {
			client, control := start(t, kind)
			stream, err := client.StreamAggregatedResources(proxyContext(t))
			must(t, err)
			receive := func(typeURL string, count int) *discovery.DiscoveryResponse {
				t.Helper()
				response, err := stream.Recv()
				must(t, err)
				if response.GetTypeUrl() != typeURL || len(response.GetResources()) != count {
					t.Fatalf("got %d of %s, not %d of %s", len(response.GetResources()), response.GetTypeUrl(), count, typeURL)
				}
				return response
			}
			ack := func(response *discovery.DiscoveryResponse, names []string) {
				t.Helper()
				must(t, stream.Send(&discovery.DiscoveryRequest{
					TypeUrl:       response.GetTypeUrl(),
					VersionInfo:   response.GetVersionInfo(),
					ResponseNonce: response.GetNonce(),
					ResourceNames: names,
				}))
			}
			must(t, stream.Send(&discovery.DiscoveryRequest{Node: &core.Node{Id: "one"}, TypeUrl: resource.ClusterType}))
			ack(receive(resource.ClusterType, services), nil)
			must(t, stream.Send(&discovery.DiscoveryRequest{TypeUrl: resource.EndpointType, ResourceNames: allServices()}))
			ack(receive(resource.EndpointType, services), allServices())

			// Clusters have not changed, and do not come again.
			for round := range 2 {
				post(t, control, 7, uint32(9000+round))
				ack(receive(resource.EndpointType, expected), allServices())
			}
		})
	}
}

func TestControlRefusesWhatItCannotDo(t *testing.T) {
	_, control := start(t, "snapshot")
	for _, query := range []string{"", "service=20&value=1", "service=-1&value=1", "service=0&value=0", "service=0&value=65536"} {
		answer, err := http.Post(control+"/change?"+query, "", nil)
		must(t, err)
		answer.Body.Close()
		if answer.StatusCode != http.StatusBadRequest {
			t.Errorf("%q: %s", query, answer.Status)
		}
	}
	for _, path := range []string{"/ready", "/memory"} {
		answer, err := http.Get(control + path)
		must(t, err)
		answer.Body.Close()
		if answer.StatusCode != http.StatusOK {
			t.Errorf("%s: %s", path, answer.Status)
		}
	}
}

// The changes that wait are one publication: of two for one service the last counts.
func TestChangesThatWaitAreOnePublication(t *testing.T) {
	to, err := newPublisher("snapshot", services, endpoints)
	must(t, err)
	changes := make(chan change, 3)
	answers := make(chan published, 3)
	for i, service := range []int{3, 4, 3} {
		changes <- change{service: service, port: uint32(9000 + i), done: answers}
	}
	close(changes)
	apply(to, endpoints, changes)
	for range 3 {
		if answer := <-answers; answer.err != nil || answer.version != "1" {
			t.Fatalf("%+v", answer)
		}
	}
	snapshot := to.(*snapshots).current
	got := snapshot.GetResources(resource.EndpointType)[serviceName(3)].(*endpoint.ClusterLoadAssignment)
	if !proto.Equal(got, assignment(3, endpoints, 9002)) {
		t.Fatal(got)
	}
}

// What each snapshot costs before any proxy is looked at: the hashes of all resources.
func BenchmarkHashesOfASnapshot(b *testing.B) {
	to, err := newPublisher("snapshot", 1000, 2)
	if err != nil {
		b.Fatal(err)
	}
	resources := to.(*snapshots).current.Resources
	for b.Loop() {
		if err := (&cache.Snapshot{Resources: resources}).ConstructVersionMap(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(proto.Size(serviceCluster(999))), "bytes/cluster")
	b.ReportMetric(float64(proto.Size(assignment(999, 2, firstPort))), "bytes/assignment")
}

// What one change costs the cache for 100 proxies that hold 1,000 services, from the change to their being watched for
// the next: the library's work without gRPC.
func BenchmarkChange(b *testing.B) {
	for _, kind := range []string{"snapshot", "linear"} {
		b.Run(kind, func(b *testing.B) {
			const services, proxies = 1000, 100
			to, err := newPublisher(kind, services, endpoints)
			if err != nil {
				b.Fatal(err)
			}
			type watch struct {
				request      *cache.DeltaRequest
				subscription stream.Subscription
				responses    chan cache.DeltaResponse
			}
			// open repeats the watch, after the response to the one before if there was one.
			open := func(w *watch) {
				if _, err := to.cache().CreateDeltaWatch(w.request, w.subscription, w.responses); err != nil {
					b.Fatal(err)
				}
			}
			took := func(w *watch) {
				response := <-w.responses
				if _, err := response.GetDeltaDiscoveryResponse(); err != nil {
					b.Fatal(err)
				}
				w.subscription.SetReturnedResources(response.GetReturnedResources())
				w.request = &cache.DeltaRequest{TypeUrl: w.request.GetTypeUrl(), ResponseNonce: "1"}
				open(w)
			}
			names := make([]string, services)
			for service := range names {
				names[service] = serviceName(service)
			}
			var watches []*watch
			for range proxies {
				for typeURL, subscribed := range map[string][]string{resource.ClusterType: nil, resource.EndpointType: names} {
					w := &watch{
						&cache.DeltaRequest{TypeUrl: typeURL},
						stream.NewDeltaSubscription(subscribed, nil, nil, true),
						make(chan cache.DeltaResponse, 1),
					}
					open(w)
					took(w)
					if typeURL == resource.EndpointType {
						watches = append(watches, w)
					}
				}
			}
			port := uint32(9000)
			for b.Loop() {
				port++
				if _, err := to.publish(map[string]*endpoint.ClusterLoadAssignment{"svc-7": assignment(7, endpoints, port)}); err != nil {
					b.Fatal(err)
				}
				for _, w := range watches {
					took(w)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*proxies), "us/proxy")
		})
	}
}

// start runs the server with TLS, and returns a client of it and the control's URL.
func start(t *testing.T, kind string) (discovery.AggregatedDiscoveryServiceClient, string) {
	t.Helper()
	certFile, keyFile, roots := certificate(t)
	ctx, cancel := context.WithCancel(context.Background())
	addresses := make(chan [2]net.Addr, 1)
	ended := make(chan error, 1)
	go func() {
		o := options{"127.0.0.1:0", "127.0.0.1:0", kind, services, endpoints, certFile, keyFile}
		ended <- run(ctx, o, func(xds, control net.Addr) { addresses <- [2]net.Addr{xds, control} })
	}()
	t.Cleanup(func() {
		cancel()
		must(t, <-ended)
	})
	select {
	case at := <-addresses:
		creds := credentials.NewTLS(&tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13})
		connection, err := grpc.NewClient(at[0].String(), grpc.WithTransportCredentials(creds))
		must(t, err)
		t.Cleanup(func() { connection.Close() })
		return discovery.NewAggregatedDiscoveryServiceClient(connection), "http://" + at[1].String()
	case err := <-ended:
		ended <- err
		t.Fatal(err)
		return nil, ""
	}
}

// certificate writes the one of net/http's tests, which is for 127.0.0.1, and returns what to trust.
func certificate(t *testing.T) (string, string, *x509.CertPool) {
	t.Helper()
	server := httptest.NewTLSServer(nil)
	defer server.Close()
	key, err := x509.MarshalPKCS8PrivateKey(server.TLS.Certificates[0].PrivateKey)
	must(t, err)
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(t.TempDir(), name)
		must(t, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
		return path
	}
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	return write("cert.pem", "CERTIFICATE", server.Certificate().Raw), write("key.pem", "PRIVATE KEY", key), roots
}

// proxyContext bounds a test's stream, and carries a token as Weft's proxies do.
func proxyContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer ignored")
}

func post(t *testing.T, control string, service int, port uint32) string {
	t.Helper()
	answer, err := http.Post(fmt.Sprintf("%s/change?service=%d&value=%d", control, service, port), "", nil)
	must(t, err)
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	must(t, err)
	if answer.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s", answer.Status, body)
	}
	return string(body)
}

func allServices() []string {
	all := make([]string, services)
	for service := range all {
		all[service] = serviceName(service)
	}
	return all
}

func names(response *discovery.DeltaDiscoveryResponse) []string {
	var all []string
	for _, each := range response.GetResources() {
		all = append(all, each.GetName())
	}
	return all
}

func ports(t *testing.T, packed *anypb.Any) []uint32 {
	t.Helper()
	var assignment endpoint.ClusterLoadAssignment
	must(t, packed.UnmarshalTo(&assignment))
	var all []uint32
	for _, each := range assignment.GetEndpoints()[0].GetLbEndpoints() {
		all = append(all, each.GetEndpoint().GetAddress().GetSocketAddress().GetPortValue())
	}
	return all
}

// same compares without regard to order: a cache's order is that of a map.
func same[T cmp.Ordered](t *testing.T, expected, got []T) {
	t.Helper()
	expected, got = slices.Clone(expected), slices.Clone(got)
	slices.Sort(expected)
	slices.Sort(got)
	if !slices.Equal(expected, got) {
		t.Fatalf("expected %v, got %v", expected, got)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
