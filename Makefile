# What cargo and the scripts do, under the names that packagers look for.

all:
	cargo build --release

# A tarball with a static program, and a Debian package, in target/package.
package:
	scripts/package

test:
	scripts/test

.PHONY: all package test
