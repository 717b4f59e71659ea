package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"runtime"
	"runtime/debug"
	"strconv"

	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
)

// change is one call of POST /change: a new port for the first endpoint of a service.
type change struct {
	service int
	port    uint32
	done    chan published
}

// published is what became of a change.
type published struct {
	version string
	err     error
}

// apply publishes changes, one publication at a time. The changes that came during one publication share the next: a
// change never waits for others, and under many of them the library has as little to do as can be.
func apply(to publisher, endpoints int, changes <-chan change) {
	for first := range changes {
		batch := []change{first}
		for range len(changes) {
			batch = append(batch, <-changes)
		}
		changed := make(map[string]*endpoint.ClusterLoadAssignment, len(batch))
		for _, each := range batch {
			changed[serviceName(each.service)] = assignment(each.service, endpoints, each.port)
		}
		version, err := to.publish(changed)
		for _, each := range batch {
			each.done <- published{version, err}
		}
	}
}

// control is how the benchmark steers the server.
func control(services int, changes chan<- change) http.Handler {
	mux := http.NewServeMux()
	// The control address is opened after the xDS address: who can ask is answered yes.
	mux.HandleFunc("GET /ready", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("POST /change", func(answer http.ResponseWriter, request *http.Request) {
		query := request.URL.Query()
		service, err := strconv.Atoi(query.Get("service"))
		if err != nil || service < 0 || service >= services {
			http.Error(answer, fmt.Sprintf("service: say 0 to %d", services-1), http.StatusBadRequest)
			return
		}
		port, err := strconv.ParseUint(query.Get("value"), 10, 16)
		if err != nil || port == 0 {
			http.Error(answer, "value: say a port, 1 to 65535", http.StatusBadRequest)
			return
		}
		done := make(chan published, 1)
		changes <- change{service: service, port: uint32(port), done: done}
		result := <-done
		if result.err != nil {
			http.Error(answer, result.err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprintln(answer, result.version)
	})
	mux.HandleFunc("GET /memory", func(answer http.ResponseWriter, _ *http.Request) {
		debug.FreeOSMemory()
		var stats runtime.MemStats
		runtime.ReadMemStats(&stats)
		answer.Header().Set("content-type", "application/json")
		// An error here is the client's going away.
		_ = json.NewEncoder(answer).Encode(map[string]any{
			"heap_live_bytes": stats.HeapAlloc,
			"stack_bytes":     stats.StackInuse,
			"goroutines":      runtime.NumGoroutine(),
		})
	})
	return mux
}
