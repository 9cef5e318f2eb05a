// Package otelpeerws tells OpenTelemetry what happens to the peers of a
// [peerws.WebSocketListener]: metrics of its connections, and a span for each.
//
//	t, err := otelpeerws.New(otelpeerws.Options{})
//	l, err := peerws.ListenConfig{Trace: t.Trace()}.Listen(ctx, 9000, "chat")
//	stop, err := t.Observe(l)
//
// Attributes have the names of the semantic conventions. There are none for metrics of
// WebSocket yet: their names follow those of HTTP servers.
//
//	websocket.server.active_connections    {connection}  now
//	websocket.server.connection.duration   s             of those that have ended, by error.type
//	websocket.server.refused               {request}     by error.type, what peerws.RefusalReason says
//	websocket.server.callback.slow         {callback}    that took a second or more
//	websocket.server.messages              {message}     by network.io.direction
//	websocket.server.io                    By            of frames, by network.io.direction
//	websocket.server.held                  By            held for peers now
//
// The last three come from [peerws.WebSocketListener.Stats], when they are collected, so that
// a message costs nothing.
package otelpeerws

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/peerws/peerws"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"
)

const scope = "github.com/peerws/peerws/otelpeerws"

// Options says where to. The zero value is good: the global providers.
type Options struct {
	MeterProvider  metric.MeterProvider
	TracerProvider trace.TracerProvider
}

// A Telemetry makes metrics and spans. One may be used for several listeners. All methods
// may be called from any goroutine.
type Telemetry struct {
	meter  metric.Meter
	tracer trace.Tracer

	active   metric.Int64UpDownCounter
	duration metric.Float64Histogram
	refused  metric.Int64Counter
	slow     metric.Int64Counter

	open sync.Map // *peerws.WebSocket → connection
}

// A connection is one that is open.
type connection struct {
	since time.Time
	span  trace.Span
}

// New makes the instruments. An error is the provider's.
func New(o Options) (*Telemetry, error) {
	if o.MeterProvider == nil {
		o.MeterProvider = otel.GetMeterProvider()
	}
	if o.TracerProvider == nil {
		o.TracerProvider = otel.GetTracerProvider()
	}
	t := &Telemetry{meter: o.MeterProvider.Meter(scope), tracer: o.TracerProvider.Tracer(scope)}
	var err error
	if t.active, err = t.meter.Int64UpDownCounter("websocket.server.active_connections", metric.WithUnit("{connection}"), metric.WithDescription("Connections that are open.")); err != nil {
		return nil, fmt.Errorf("otelpeerws: %w", err)
	}
	if t.duration, err = t.meter.Float64Histogram("websocket.server.connection.duration", metric.WithUnit("s"), metric.WithDescription("How long connections were open.")); err != nil {
		return nil, fmt.Errorf("otelpeerws: %w", err)
	}
	if t.refused, err = t.meter.Int64Counter("websocket.server.refused", metric.WithUnit("{request}"), metric.WithDescription("Transports and requests that were turned away.")); err != nil {
		return nil, fmt.Errorf("otelpeerws: %w", err)
	}
	if t.slow, err = t.meter.Int64Counter("websocket.server.callback.slow", metric.WithUnit("{callback}"), metric.WithDescription("Callbacks of the program that took a second or more.")); err != nil {
		return nil, fmt.Errorf("otelpeerws: %w", err)
	}
	return t, nil
}

// Trace is for [peerws.ListenConfig.Trace].
func (t *Telemetry) Trace() *peerws.Trace {
	return &peerws.Trace{Opened: t.opened, Refused: t.turnedAway, Closed: t.closed, Slow: t.slowCallback}
}

func (t *Telemetry) opened(c *peerws.WebSocket) {
	r := c.Request()
	attrs := []attribute.KeyValue{
		attribute.String("network.protocol.name", "websocket"),
		attribute.String("url.path", r.URL.Path),
	}
	if host, port, err := net.SplitHostPort(c.RemoteAddr().String()); err == nil {
		attrs = append(attrs, attribute.String("client.address", host))
		if n, err := strconv.Atoi(port); err == nil {
			attrs = append(attrs, attribute.Int("client.port", n))
		}
	}
	if p := c.Protocol(); p != "" {
		attrs = append(attrs, attribute.String("websocket.subprotocol", p))
	}
	ctx, span := t.tracer.Start(r.Context(), "websocket", trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(attrs...))
	t.open.Store(c, connection{time.Now(), span})
	t.active.Add(ctx, 1)
}

func (t *Telemetry) closed(c *peerws.WebSocket, ev peerws.CloseEvent) {
	x, ok := t.open.LoadAndDelete(c)
	if !ok {
		return
	}
	ctx := context.Background()
	t.active.Add(ctx, -1)
	conn := x.(connection)
	var failed []attribute.KeyValue
	if ev.Err != nil {
		failed = append(failed, attribute.String("error.type", ev.Initiator.String()))
		conn.span.SetStatus(codes.Error, ev.Err.Error())
	}
	t.duration.Record(ctx, time.Since(conn.since).Seconds(), metric.WithAttributes(failed...))
	s := c.Stats()
	conn.span.SetAttributes(append(failed,
		attribute.Int("websocket.close.code", int(ev.Code)),
		attribute.String("websocket.close.initiator", ev.Initiator.String()),
		attribute.Int64("websocket.messages.received", s.MessagesReceived),
		attribute.Int64("websocket.messages.sent", s.MessagesSent))...)
	conn.span.End()
}

func (t *Telemetry) turnedAway(r peerws.Refusal) {
	attrs := []attribute.KeyValue{attribute.String("error.type", string(r.Reason))}
	if r.Status != 0 {
		attrs = append(attrs, attribute.Int("http.response.status_code", r.Status))
	}
	t.refused.Add(context.Background(), 1, metric.WithAttributes(attrs...))
}

func (t *Telemetry) slowCallback(c *peerws.WebSocket, d time.Duration) {
	t.slow.Add(context.Background(), 1)
	if x, ok := t.open.Load(c); ok {
		x.(connection).span.AddEvent("slow callback", trace.WithAttributes(attribute.Float64("duration", d.Seconds())))
	}
}

// Observe has l's Stats collected with the metrics, until stop is called.
func (t *Telemetry) Observe(l *peerws.WebSocketListener) (stop func() error, err error) {
	messages, err := t.meter.Int64ObservableCounter("websocket.server.messages", metric.WithUnit("{message}"), metric.WithDescription("Messages received and sent."))
	if err != nil {
		return nil, fmt.Errorf("otelpeerws: %w", err)
	}
	io, err := t.meter.Int64ObservableCounter("websocket.server.io", metric.WithUnit("By"), metric.WithDescription("Bytes of frames received and sent."))
	if err != nil {
		return nil, fmt.Errorf("otelpeerws: %w", err)
	}
	held, err := t.meter.Int64ObservableGauge("websocket.server.held", metric.WithUnit("By"), metric.WithDescription("Bytes held for peers."))
	if err != nil {
		return nil, fmt.Errorf("otelpeerws: %w", err)
	}
	port := attribute.Int("server.port", l.Port())
	receive := metric.WithAttributes(port, attribute.String("network.io.direction", "receive"))
	transmit := metric.WithAttributes(port, attribute.String("network.io.direction", "transmit"))
	r, err := t.meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		s := l.Stats()
		o.ObserveInt64(messages, s.MessagesReceived, receive)
		o.ObserveInt64(messages, s.MessagesSent, transmit)
		o.ObserveInt64(io, s.BytesReceived, receive)
		o.ObserveInt64(io, s.BytesSent, transmit)
		o.ObserveInt64(held, s.Held, metric.WithAttributes(port))
		return nil
	}, messages, io, held)
	if err != nil {
		return nil, fmt.Errorf("otelpeerws: %w", err)
	}
	return r.Unregister, nil
}
