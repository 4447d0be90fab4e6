// Command empty does nothing. It is the floor of the plugin's figures: what the kernel and Go's runtime cost before and after any main.
package main

func main() {}
