// Package peerws lets any program be a WebSocket peer.
package peerws
