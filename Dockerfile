# One image a binary:
#   docker build --target importer -t onhand-importer .
#   docker build --target stock -t onhand-stock .
#   docker build --target onhand -t onhand .
# It needs BuildKit (Docker's own since version 23) or buildah, for the caches.

FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
# What others wrote is fetched and compiled once and stays in the builder's caches. Cargo tells by
# the time of change what to compile again, and the files of another clone may be older than what
# the cache holds of them: all of ours count as just changed. Names of functions stay for backtraces;
# line numbers, four fifths of a binary, do not.
RUN --mount=type=cache,id=onhand-registry,target=/usr/local/cargo/registry \
    --mount=type=cache,id=onhand-target,target=/target,sharing=locked \
    find . -type f -exec touch {} + \
    && cargo build --release --locked --target-dir /target -p importer -p stock -p onhand \
    && mkdir /out \
    && cp /target/release/importer /target/release/stock /target/release/onhand /out/ \
    && strip --strip-debug /out/*

FROM debian:bookworm-slim AS runtime
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates libssl3 zlib1g \
    && rm -rf /var/lib/apt/lists/*
USER 10001:10001
STOPSIGNAL SIGTERM

FROM runtime AS importer
COPY --from=build /out/importer /usr/local/bin/
ENTRYPOINT ["importer"]

FROM runtime AS stock
COPY --from=build /out/stock /usr/local/bin/
ENTRYPOINT ["stock"]

FROM runtime AS onhand
COPY --from=build /out/onhand /usr/local/bin/
ENTRYPOINT ["onhand"]
