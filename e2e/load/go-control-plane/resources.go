package main

import (
	"fmt"
	"math"
	"time"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	router "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	rawbuffer "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/raw_buffer/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	http "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	matcher "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// The resources are those that Weft makes for a Service (src/envoy/cluster.rs, tests/golden), field by field, so that
// both servers hold, hash and send messages of the same size.

const (
	listenerName = "outbound"
	routeName    = "outbound"
	// firstPort is the port of every endpoint before any change.
	firstPort = 8080
	// transportSocketMatch is the key of the endpoint metadata that transport_socket_matches look at.
	transportSocketMatch = "envoy.transport_socket_match"
)

func serviceName(service int) string { return fmt.Sprintf("svc-%d", service) }

// clusters are one EDS cluster a service.
func clusters(services int) []types.Resource {
	all := make([]types.Resource, services)
	for service := range services {
		all[service] = serviceCluster(service)
	}
	return all
}

func serviceCluster(service int) *cluster.Cluster {
	name := serviceName(service)
	unlimited := wrapperspb.UInt32(math.MaxUint32)
	return &cluster.Cluster{
		Name:                 name,
		AltStatName:          fmt.Sprintf("bench/%s/80", name),
		ClusterDiscoveryType: &cluster.Cluster_Type{Type: cluster.Cluster_EDS},
		EdsClusterConfig:     &cluster.Cluster_EdsClusterConfig{EdsConfig: ads(5 * time.Second)},
		ConnectTimeout:       durationpb.New(5 * time.Second),
		CircuitBreakers: &cluster.CircuitBreakers{Thresholds: []*cluster.CircuitBreakers_Thresholds{{
			MaxConnections:     unlimited,
			MaxPendingRequests: unlimited,
			MaxRequests:        unlimited,
			MaxRetries:         unlimited,
		}}},
		CommonLbConfig: &cluster.Cluster_CommonLbConfig{
			UpdateMergeWindow: durationpb.New(0),
			LocalityConfigSpecifier: &cluster.Cluster_CommonLbConfig_LocalityWeightedLbConfig_{
				LocalityWeightedLbConfig: &cluster.Cluster_CommonLbConfig_LocalityWeightedLbConfig{},
			},
		},
		TypedExtensionProtocolOptions: map[string]*anypb.Any{
			"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": pack(&http.HttpProtocolOptions{
				UpstreamProtocolOptions: &http.HttpProtocolOptions_UseDownstreamProtocolConfig{
					UseDownstreamProtocolConfig: &http.HttpProtocolOptions_UseDownstreamHttpConfig{
						HttpProtocolOptions:  &core.Http1ProtocolOptions{},
						Http2ProtocolOptions: &core.Http2ProtocolOptions{},
					},
				},
			}),
		},
		TransportSocketMatches: []*cluster.Cluster_TransportSocketMatch{
			{Name: "mesh", Match: meshMetadata(), TransportSocket: upstreamTLS(name)},
			{
				Name:  "plaintext",
				Match: &structpb.Struct{},
				TransportSocket: &core.TransportSocket{
					Name:       "envoy.transport_sockets.raw_buffer",
					ConfigType: &core.TransportSocket_TypedConfig{TypedConfig: pack(&rawbuffer.RawBuffer{})},
				},
			},
		},
	}
}

// upstreamTLS refers to the proxy's certificate and the mesh's root by SDS, and states whom the proxy believes.
func upstreamTLS(service string) *core.TransportSocket {
	validation := &tlsv3.CommonTlsContext_CombinedCertificateValidationContext{
		DefaultValidationContext: &tlsv3.CertificateValidationContext{
			MatchTypedSubjectAltNames: []*tlsv3.SubjectAltNameMatcher{{
				SanType: tlsv3.SubjectAltNameMatcher_URI,
				Matcher: &matcher.StringMatcher{MatchPattern: &matcher.StringMatcher_Exact{
					Exact: fmt.Sprintf("spiffe://cluster.local/ns/bench/sa/%s", service),
				}},
			}},
		},
		ValidationContextSdsSecretConfig: secret("mesh-root"),
	}
	context := &tlsv3.UpstreamTlsContext{
		CommonTlsContext: &tlsv3.CommonTlsContext{
			TlsParams: &tlsv3.TlsParameters{
				TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_3,
				TlsMaximumProtocolVersion: tlsv3.TlsParameters_TLSv1_3,
			},
			AlpnProtocols:                  []string{"weft:TCP"},
			TlsCertificateSdsSecretConfigs: []*tlsv3.SdsSecretConfig{secret("workload")},
			ValidationContextType: &tlsv3.CommonTlsContext_CombinedValidationContext{
				CombinedValidationContext: validation,
			},
		},
		Sni: fmt.Sprintf("80.%s.bench.svc.cluster.local", service),
	}
	return &core.TransportSocket{
		Name:       "envoy.transport_sockets.tls",
		ConfigType: &core.TransportSocket_TypedConfig{TypedConfig: pack(context)},
	}
}

func secret(name string) *tlsv3.SdsSecretConfig {
	return &tlsv3.SdsSecretConfig{Name: name, SdsConfig: ads(0)}
}

// assignments are the endpoints of every service before any change.
func assignments(services, endpoints int) []types.Resource {
	all := make([]types.Resource, services)
	for service := range services {
		all[service] = assignment(service, endpoints, firstPort)
	}
	return all
}

// assignment is the endpoints of one service, in one locality. The first endpoint has the stated port: what a change
// changes.
func assignment(service, endpoints int, port uint32) *endpoint.ClusterLoadAssignment {
	name := serviceName(service)
	all := make([]*endpoint.LbEndpoint, endpoints)
	for i := range all {
		// 10.0.0.0/8 holds every endpoint of 10,000 services with 1,600 endpoints each.
		number := service*endpoints + i
		all[i] = &endpoint.LbEndpoint{
			HostIdentifier: &endpoint.LbEndpoint_Endpoint{Endpoint: &endpoint.Endpoint{
				Address: socketAddress(fmt.Sprintf("10.%d.%d.%d", number>>16&255, number>>8&255, number&255), firstPort),
			}},
			Metadata: &core.Metadata{FilterMetadata: map[string]*structpb.Struct{transportSocketMatch: meshMetadata()}},
		}
	}
	if endpoints > 0 {
		all[0].GetEndpoint().GetAddress().GetSocketAddress().PortSpecifier = &core.SocketAddress_PortValue{PortValue: port}
	}
	return &endpoint.ClusterLoadAssignment{
		ClusterName: name,
		Endpoints: []*endpoint.LocalityLbEndpoints{{
			Locality:            &core.Locality{SubZone: "bench/" + name},
			LbEndpoints:         all,
			LoadBalancingWeight: wrapperspb.UInt32(1),
		}},
	}
}

// outboundListener takes what the proxy's application sends, and routes it by the one route configuration.
func outboundListener() *listener.Listener {
	manager := &hcm.HttpConnectionManager{
		StatPrefix: listenerName,
		RouteSpecifier: &hcm.HttpConnectionManager_Rds{Rds: &hcm.Rds{
			ConfigSource:    ads(0),
			RouteConfigName: routeName,
		}},
		HttpFilters: []*hcm.HttpFilter{{
			Name:       "envoy.filters.http.router",
			ConfigType: &hcm.HttpFilter_TypedConfig{TypedConfig: pack(&router.Router{})},
		}},
	}
	return &listener.Listener{
		Name:    listenerName,
		Address: socketAddress("127.0.0.1", 15001),
		FilterChains: []*listener.FilterChain{{Filters: []*listener.Filter{{
			Name:       "envoy.filters.network.http_connection_manager",
			ConfigType: &listener.Filter_TypedConfig{TypedConfig: pack(manager)},
		}}}},
	}
}

// outboundRoutes lead from each service's name to its cluster.
func outboundRoutes(services int) *route.RouteConfiguration {
	hosts := make([]*route.VirtualHost, services)
	for service := range hosts {
		name := serviceName(service)
		hosts[service] = &route.VirtualHost{
			Name:    name,
			Domains: []string{name},
			Routes: []*route.Route{{
				Match: &route.RouteMatch{PathSpecifier: &route.RouteMatch_Prefix{Prefix: "/"}},
				Action: &route.Route_Route{Route: &route.RouteAction{
					ClusterSpecifier: &route.RouteAction_Cluster{Cluster: name},
				}},
			}},
		}
	}
	return &route.RouteConfiguration{Name: routeName, VirtualHosts: hosts}
}

// ads is a configuration source on the stream that the proxy already has.
func ads(patience time.Duration) *core.ConfigSource {
	return &core.ConfigSource{
		ConfigSourceSpecifier: &core.ConfigSource_Ads{Ads: &core.AggregatedConfigSource{}},
		InitialFetchTimeout:   durationpb.New(patience),
		ResourceApiVersion:    core.ApiVersion_V3,
	}
}

func socketAddress(address string, port uint32) *core.Address {
	return &core.Address{Address: &core.Address_SocketAddress{SocketAddress: &core.SocketAddress{
		Address:       address,
		PortSpecifier: &core.SocketAddress_PortValue{PortValue: port},
	}}}
}

// meshMetadata is `tls: mesh`.
func meshMetadata() *structpb.Struct {
	return &structpb.Struct{Fields: map[string]*structpb.Value{"tls": structpb.NewStringValue("mesh")}}
}

// pack cannot fail: the messages are made here, and hold no invalid UTF-8.
func pack(message proto.Message) *anypb.Any {
	packed, err := anypb.New(message)
	if err != nil {
		panic(err)
	}
	return packed
}
