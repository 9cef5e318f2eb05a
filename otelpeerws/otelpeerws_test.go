package otelpeerws

import (
	"errors"
	"net/http"
	"testing"

	"github.com/peerws/peerws"
	"go.opentelemetry.io/otel/attribute"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
)

// One connection that is open, one that has ended, one that was refused.
func TestTelemetry(t *testing.T) {
	reader := sdkmetric.NewManualReader()
	spans := tracetest.NewSpanRecorder()
	tel, err := New(Options{
		MeterProvider:  sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader)),
		TracerProvider: sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans)),
	})
	if err != nil {
		t.Fatal(err)
	}
	ln := peerws.NewPipeListener()
	conns := make(chan *peerws.WebSocket, 2)
	l, err := peerws.ListenConfig{
		Trace: tel.Trace(),
		Authorize: func(r *http.Request) error {
			if r.URL.Path == "/no" {
				return errors.New("no")
			}
			return nil
		},
		OnConnection: func(c *peerws.WebSocket) {
			c.OnMessage(func(c *peerws.WebSocket, m peerws.Message) { c.Send(m) })
			conns <- c
		},
	}.Serve(ln, "chat")
	if err != nil {
		t.Fatal(err)
	}
	stop, err := tel.Observe(l)
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	ctx := t.Context()
	d := ln.Dialer()
	if _, err := d.Dial(ctx, "ws://a/no", "chat"); err == nil {
		t.Error("not refused")
	}
	a, err := d.Dial(ctx, "ws://a/room", "chat")
	if err != nil {
		t.Fatal(err)
	}
	b, err := d.Dial(ctx, "ws://a/room", "chat")
	if err != nil {
		t.Fatal(err)
	}
	a.SendText("hello")
	if _, err := a.Read(ctx); err != nil {
		t.Fatal(err)
	}
	first := <-conns
	if _, err := a.CloseWait(ctx, 4001, "bye"); err != nil {
		t.Fatal(err)
	}
	first.Wait(ctx)

	var got metricdata.ResourceMetrics
	if err := reader.Collect(ctx, &got); err != nil {
		t.Fatal(err)
	}
	sums := map[string]int64{}
	for _, m := range got.ScopeMetrics[0].Metrics {
		switch x := m.Data.(type) {
		case metricdata.Sum[int64]:
			for _, p := range x.DataPoints {
				direction, _ := p.Attributes.Value("network.io.direction")
				why, _ := p.Attributes.Value("error.type")
				sums[m.Name+" "+direction.AsString()+why.AsString()] += p.Value
			}
		case metricdata.Gauge[int64]:
			sums[m.Name+" "] = x.DataPoints[0].Value
		case metricdata.Histogram[float64]:
			sums[m.Name+" "] = int64(x.DataPoints[0].Count)
		}
	}
	for name, want := range map[string]int64{
		"websocket.server.active_connections ":  1,
		"websocket.server.connection.duration ": 1,
		"websocket.server.refused Authorize":    1,
		"websocket.server.messages receive":     1,
		"websocket.server.messages transmit":    1,
		"websocket.server.io receive":           11 + 11, // a text of 5, a Close with a reason of 3
		"websocket.server.held ":                0,
	} {
		if n, ok := sums[name]; !ok || n != want {
			t.Errorf("%s is %d, want %d (%v)", name, n, want, sums)
		}
	}
	ended := spans.Ended()
	if len(ended) != 1 || ended[0].Name() != "websocket" {
		t.Fatalf("%d spans", len(ended))
	}
	attrs := attribute.NewSet(ended[0].Attributes()...)
	for key, want := range map[attribute.Key]string{"url.path": "/room", "websocket.subprotocol": "chat", "websocket.close.code": "4001", "websocket.close.initiator": "peer", "websocket.messages.received": "1"} {
		if v, _ := attrs.Value(key); v.String() != want {
			t.Errorf("%s is %q, want %q", key, v.String(), want)
		}
	}
	b.Close()
	l.Shutdown(ctx)
	if n := len(spans.Ended()); n != 2 {
		t.Errorf("%d spans at the end", n)
	}
}
