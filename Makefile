# The recipes of the house; CI runs these and nothing else.
.PHONY: help demo demo-metrics demo-kubelet demo-gate demo-nvidia demo-turns hw hw-turns hw-bundle test bench lint fmt deny doc

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1  -  /p' Makefile

demo: ## show accelpool on this machine, which needs no accelerator
	@tools/setup.sh && tools/demo.sh

demo-nvidia: ## show the NVIDIA adapter on this machine, which needs no GPU
	@tools/setup.sh && tools/demo-nvidia.sh

demo-gate: ## show the kernel refuse a device that was not granted
	@tools/setup.sh && tools/demo-gate.sh

demo-turns: ## show shared devices at work, on a stand-in for CUDA's driver
	@tools/setup.sh && tools/demo-turns.sh

demo-metrics: ## show who used what: five agents, Prometheus, sums and a picture
	@tools/setup.sh && tools/demo-metrics.sh

demo-kubelet: ## show the Kubernetes driver between doubles of kubelet and API server
	@tools/setup.sh && tools/demo-kubelet.sh

hw-bundle: ## make the folder that checks accelpool on a machine with a GPU and no Rust
	@tools/setup.sh && tools/hw-bundle.sh

hw: hw-bundle ## check accelpool on this machine's GPUs, which nobody may be using
	@target/hw/accelpool-hw/accelpool-hw check --out target/hw/report

hw-turns: hw-bundle ## measure turns on this machine's GPU, which nobody may be using
	@target/hw/accelpool-hw/accelpool-hw turns --out target/hw/turns

test: ## run every test
	@tools/setup.sh && { tools/containerd.sh || true; } && tools/test.sh

bench: ## measure, each figure beside its budget
	@tools/setup.sh && cargo bench --locked -p accelpool-benches

lint: ## check format, house rules and clippy
	@tools/setup.sh && cargo fmt --all --check && cargo run --quiet --locked -p xtask -- tidy && cargo clippy --workspace --all-targets --locked -- -D warnings

fmt: ## format the code
	@cargo fmt --all

deny: ## check licences, bans and sources of what we depend on
	@tools/deny.sh

doc: ## build the documentation of the code
	@tools/setup.sh && RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --locked
