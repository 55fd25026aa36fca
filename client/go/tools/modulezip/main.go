// Modulezip writes a folder as the zip of a Go module, as module proxies serve it:
//
//	modulezip <module> <version> <folder> <file>
package main

import (
	"log"
	"os"

	"golang.org/x/mod/module"
	"golang.org/x/mod/zip"
)

func main() {
	log.SetFlags(0)
	if len(os.Args) != 5 {
		log.Fatal("usage: modulezip <module> <version> <folder> <file>")
	}
	file, err := os.Create(os.Args[4])
	if err != nil {
		log.Fatal(err)
	}
	named := module.Version{Path: os.Args[1], Version: os.Args[2]}
	if err := zip.CreateFromDir(file, named, os.Args[3]); err != nil {
		log.Fatal(err)
	}
	if err := file.Close(); err != nil {
		log.Fatal(err)
	}
}
