//go:build linux

package main

func (r *results) chart() []byte { return nil }
