# Weft's image: the binary, and what interception needs in a pod (nft, ip). There is no shell in it.
#
#     docker build --tag ghcr.io/weft-mesh/weft:0.1.0 .
FROM docker.io/library/rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    cargo build --release --locked --bin weft && install -D target/release/weft /out/weft

FROM docker.io/library/debian:bookworm-slim AS root
# Debian's newest, with what it has mended.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends iproute2 libgcc-s1 nftables
COPY image/collect /usr/local/bin/collect
COPY --from=build /out/weft /usr/bin/weft
RUN collect /root-of-image weft nft ip && mkdir -p /root-of-image/run/weft /root-of-image/tmp

FROM scratch
COPY --from=root /root-of-image /
ENV PATH=/usr/sbin:/usr/bin:/sbin:/bin
# The control plane and the webhooks need no right; the chart and the injector say when another user is needed.
USER 65532:65532
ENTRYPOINT ["/usr/bin/weft"]
