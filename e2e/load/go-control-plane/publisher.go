package main

import (
	"context"
	"fmt"
	"maps"
	"strconv"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
)

// A publisher keeps the resources in one of the library's caches. Its methods are for one goroutine.
type publisher interface {
	// cache is what the xDS server reads.
	cache() cache.Cache
	// publish replaces endpoints in the cache, which tells every open watch, and returns the cache's new version.
	publish(changed map[string]*endpoint.ClusterLoadAssignment) (string, error)
}

func newPublisher(kind string, services, endpoints int) (publisher, error) {
	resources := map[resource.Type][]types.Resource{
		resource.ClusterType:  clusters(services),
		resource.EndpointType: assignments(services, endpoints),
		resource.ListenerType: {outboundListener()},
		resource.RouteType:    {outboundRoutes(services)},
	}
	switch kind {
	case "snapshot":
		return newSnapshots(resources)
	case "linear":
		return newLinear(resources), nil
	default:
		return nil, fmt.Errorf("--cache %q: say snapshot or linear", kind)
	}
}

// oneGroup gives every proxy the same snapshot: the library's way for proxies with the same configuration. A snapshot
// a proxy would cost as many SetSnapshot calls a change, and as much work in each watch.
type oneGroup struct{}

const group = "mesh"

func (oneGroup) ID(*core.Node) string { return group }

// snapshots publish in a SnapshotCache.
type snapshots struct {
	store   cache.SnapshotCache
	current *cache.Snapshot
	version uint64
}

func newSnapshots(resources map[resource.Type][]types.Resource) (*snapshots, error) {
	first, err := cache.NewSnapshot("0", resources)
	if err != nil {
		return nil, err
	}
	if err := first.Consistent(); err != nil {
		return nil, err
	}
	// ads: responses go out in the order that ADS wants. No logger: the library's default one does nothing.
	store := cache.NewSnapshotCache(true, oneGroup{}, nil)
	return &snapshots{store: store, current: first}, store.SetSnapshot(context.Background(), group, first)
}

func (s *snapshots) cache() cache.Cache { return s.store }

func (s *snapshots) publish(changed map[string]*endpoint.ClusterLoadAssignment) (string, error) {
	s.version++
	version := strconv.FormatUint(s.version, 10)
	before := s.current.Resources[types.Endpoint].Items
	items := maps.Clone(before)
	for name, assignment := range changed {
		items[name] = types.ResourceWithTTL{Resource: assignment}
	}
	// The other types keep their version, so that a state-of-the-world proxy is sent its endpoints only. The version
	// map stays nil, as the library asks: SetSnapshot hashes the resources, once for all proxies.
	next := &cache.Snapshot{Resources: s.current.Resources}
	next.Resources[types.Endpoint] = cache.Resources{Version: version, Items: items}
	s.current = next
	return version, s.store.SetSnapshot(context.Background(), group, next)
}

// linear publishes in a LinearCache a type, behind a MuxCache.
type linear struct {
	mux       *cache.MuxCache
	endpoints *cache.LinearCache
	version   uint64
}

func newLinear(resources map[resource.Type][]types.Resource) *linear {
	// The mux ends the stream of who asks for a type that it has no cache for, and a mesh's proxies ask for secrets:
	// these find nothing, and wait.
	caches := map[string]cache.Cache{resource.SecretType: cache.NewLinearCache(resource.SecretType)}
	for typeURL, items := range resources {
		caches[typeURL] = cache.NewLinearCache(
			typeURL,
			cache.WithInitialResources(cache.IndexRawResourcesByName(items)),
		)
	}
	return &linear{
		mux: &cache.MuxCache{
			Classify:      func(request *cache.Request) string { return request.GetTypeUrl() },
			ClassifyDelta: func(request *cache.DeltaRequest) string { return request.GetTypeUrl() },
			Caches:        caches,
		},
		endpoints: caches[resource.EndpointType].(*cache.LinearCache),
	}
}

func (l *linear) cache() cache.Cache { return l.mux }

func (l *linear) publish(changed map[string]*endpoint.ClusterLoadAssignment) (string, error) {
	update := make(map[string]types.Resource, len(changed))
	for name, assignment := range changed {
		update[name] = assignment
	}
	// The cache counts its updates too, and keeps the count to itself.
	l.version++
	return strconv.FormatUint(l.version, 10), l.endpoints.UpdateResources(update, nil)
}
