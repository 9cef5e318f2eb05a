//go:build !linux

package main

import "log"

func main() {
	log.Fatal("the benchmark needs Linux: it reads the servers' CPU clocks and pins processes to cores")
}
