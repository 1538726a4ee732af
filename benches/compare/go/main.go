// A balancer as Go's standard library gives it: httputil.ReverseProxy, round robin, with the forwarding fields and the
// access log that the other proxies of the comparison have.
//
// balancer LISTEN TLS_LISTEN CERT KEY LOG BACKEND...; LOG is a file, or - for none. GOMAXPROCS is the number of workers.
package main

import (
	"bufio"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// As large as the buffers of the other proxies.
const bufferSize = 64 << 10

type buffers struct{ pool sync.Pool }

func (b *buffers) Get() []byte       { return *b.pool.Get().(*[]byte) }
func (b *buffers) Put(buffer []byte) { b.pool.Put(&buffer) }

type recorder struct {
	http.ResponseWriter
	status int
}

func (r *recorder) WriteHeader(status int) {
	r.status = status
	r.ResponseWriter.WriteHeader(status)
}

// Unwrap lets upgrades and flushes through.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

func logged(next http.Handler, file string) http.Handler {
	out, err := os.OpenFile(file, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		log.Fatal(err)
	}
	writer, lock := bufio.NewWriterSize(out, bufferSize), sync.Mutex{}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began, record := time.Now(), &recorder{w, 200}
		next.ServeHTTP(record, r)
		lock.Lock()
		fmt.Fprintf(writer, "{\"client\":%q,\"method\":%q,\"path\":%q,\"status\":%d,\"seconds\":%.6f}\n",
			r.RemoteAddr, r.Method, r.URL.Path, record.status, time.Since(began).Seconds())
		lock.Unlock()
	})
}

func main() {
	if len(os.Args) < 7 {
		log.Fatal("usage: balancer LISTEN TLS_LISTEN CERT KEY LOG BACKEND...")
	}
	backends := os.Args[6:]
	var turn uint64
	proxy := &httputil.ReverseProxy{
		Director: func(request *http.Request) {
			scheme := "http"
			if request.TLS != nil {
				scheme = "https"
			}
			client, _, _ := net.SplitHostPort(request.RemoteAddr)
			var id [16]byte
			_, _ = rand.Read(id[:])
			request.URL.Scheme = "http"
			request.URL.Host = backends[atomic.AddUint64(&turn, 1)%uint64(len(backends))]
			// ReverseProxy itself appends X-Forwarded-For.
			request.Header.Set("X-Forwarded-Proto", scheme)
			request.Header.Set("X-Forwarded-Host", request.Host)
			request.Header.Set("Forwarded", "for="+client+";host="+request.Host+";proto="+scheme)
			request.Header.Set("Via", "1.1 go")
			request.Header.Set("X-Request-Id", hex.EncodeToString(id[:]))
		},
		Transport: &http.Transport{
			MaxIdleConnsPerHost: 1024,
			DisableCompression:  true,
			ReadBufferSize:      bufferSize,
			WriteBufferSize:     bufferSize,
		},
		BufferPool: &buffers{sync.Pool{New: func() any { buffer := make([]byte, bufferSize); return &buffer }}},
		ErrorLog:   log.New(os.Stderr, "", 0),
	}
	var handler http.Handler = proxy
	if os.Args[5] != "-" {
		handler = logged(proxy, os.Args[5])
	}
	go func() { log.Fatal(http.ListenAndServe(os.Args[1], handler)) }()
	log.Fatal(http.ListenAndServeTLS(os.Args[2], os.Args[3], os.Args[4], handler))
}
