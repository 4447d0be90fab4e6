// An empty program: what the kernel and Go's runtime cost before and after any main.
package main

func main() {}
