#!/usr/bin/env bash
# Publish a release that `make release` has made and signed:
#
#   scripts/publish.sh build/release/0.2.0
#   DRY_RUN=1 scripts/publish.sh build/release/0.2.0           say what would be run, and run nothing
#   PARTS="python chart" scripts/publish.sh build/release/0.2.0  of these alone, such as to go on after an error
#
# The project holds no credentials: bring those of whoever publishes, in the environment or in the
# files of each tool.
#
#   python      UV_PUBLISH_TOKEN
#   typescript  what `npm login` has stored
#   rust        what `cargo login` has stored
#   java        MAVEN_URL, and MAVEN_SERVER of ~/.m2/settings.xml
#   chart       CHART_REPOSITORY, such as oci://registry.example.com/charts; `helm registry login`
#   images      IMAGE_REPOSITORY, such as registry.example.com/actserve; `docker login`
#   go          the right to push tags; nothing but tags publishes a Go module
set -euo pipefail

folder=${1:?the folder of a release, such as build/release/0.2.0}
cd "$(dirname "$0")/.."
version=$(basename "$folder")
signers=${SIGNERS:-allowed_signers}

# What was built is what is published, whatever has become of the folder since.
ssh-keygen -Y verify -n actserve-release -I release@actserve -f "$signers" -s "$folder/SHA256SUMS.sig" \
    <"$folder/SHA256SUMS"
(cd "$folder" && sha256sum --check --strict --quiet SHA256SUMS)

run() {
    printf '+ %s\n' "$*"
    [[ -n ${DRY_RUN:-} ]] || "$@"
}

# In a dry run a name that is not set stands for itself.
needed() {
    [[ -n ${!1:-} ]] && printf '%s' "${!1}" && return
    [[ -n ${DRY_RUN:-} ]] && printf '$%s' "$1" && return
    printf 'publish: set %s\n' "$1" >&2
    exit 1
}

publish_python() {
    run uv publish "$folder"/actserve-"$version"* "$folder"/actserve_server-"$version"*
}

publish_typescript() {
    run npm publish --access public "$folder/actserve-client-$version.tgz"
}

# Cargo packs it once more, from the commit that the release was made of.
publish_rust() {
    run env -C client/rust cargo publish --package actserve --no-verify
}

publish_java() {
    local jar=$folder/actserve-$version
    local url server
    url=$(needed MAVEN_URL)
    server=$(needed MAVEN_SERVER)
    run mvn --batch-mode deploy:deploy-file "-Durl=$url" "-DrepositoryId=$server" "-DpomFile=$jar.pom" \
        "-Dfile=$jar.jar" "-Dsources=$jar-sources.jar" "-Djavadoc=$jar-javadoc.jar"
}

publish_chart() {
    local repository
    repository=$(needed CHART_REPOSITORY)
    run helm push "$folder/actserve-chart-$version.tgz" "$repository"
}

publish_images() {
    local repository variant
    repository=$(needed IMAGE_REPOSITORY)
    for variant in cpu cuda; do
        run docker tag "actserve:$version-$variant" "$repository:$version-$variant"
        run docker push "$repository:$version-$variant"
    done
}

# Last: from then on the version is what everybody takes it for.
publish_go() {
    run git tag --annotate --message "actserve $version" "v$version"
    run git tag --annotate --message "actserve $version" "client/go/v$version"
    run git push origin "v$version" "client/go/v$version"
}

for part in ${PARTS:-python typescript rust java chart images go}; do
    "publish_$part"
done
