#!/usr/bin/env bash
# Publish a release that `make release` has made and signed:
#
#   scripts/publish.sh build/release/0.2.0
#   DRY_RUN=1 scripts/publish.sh build/release/0.2.0           say what would be run, and run nothing
#   PARTS="python chart" scripts/publish.sh build/release/0.2.0  of these alone, such as to go on after an error
#
# It publishes from a clean checkout of the commit that the release was made of, what is signed and nothing
# else.
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
export LC_ALL=C

folder=${1:?the folder of a release, such as build/release/0.2.0}
cd "$(dirname "$0")/.."
version=$(basename "$folder")
signers=${SIGNERS:-allowed_signers}

refuse() {
    printf 'publish: %s\n' "$*" >&2
    exit 1
}

# What was built is what is published, whatever has become of the folder since.
ssh-keygen -Y verify -n actserve-release -I release@actserve -f "$signers" -s "$folder/SHA256SUMS.sig" \
    <"$folder/SHA256SUMS"
(cd "$folder" && sha256sum --check --strict --quiet SHA256SUMS)

# Nothing lies beside what is signed, and all of it is of the version that the folder is named after: a
# signature of another version counts for that one alone.
[[ $version =~ ^[0-9]+\.[0-9]+\.[0-9]+$ ]] || refuse "$version is no version; name a folder such as 0.2.0"
signed=()
is_signed() {
    local each
    for each in "${signed[@]}"; do
        [[ $each != "$1" ]] || return 0
    done
    return 1
}
while IFS= read -r line; do
    [[ $line =~ ^[0-9a-f]{64}\ \ ([A-Za-z0-9_][A-Za-z0-9._-]*)$ ]] || refuse "SHA256SUMS has a line of no file: $line"
    name=${BASH_REMATCH[1]}
    [[ $name == @(COMMIT|NOTES.md) || $name =~ ^actserve[a-z_-]*-"$version"[.-][a-z] ]] ||
        refuse "$name is not of version $version; make that release again"
    signed+=("$name")
done <"$folder/SHA256SUMS"
for path in "$folder"/* "$folder"/.[!.]* "$folder"/..?*; do
    [[ -e $path || -L $path ]] || continue
    name=${path##*/}
    [[ -f $path && ! -L $path ]] || refuse "$name is no file; a release is files alone"
    [[ $name == @(SHA256SUMS|SHA256SUMS.sig) ]] || is_signed "$name" ||
        refuse "$name is not signed; take it away, or make the release again"
done

# A file of the release. Whoever names one that is not signed is refused.
file() {
    is_signed "$1" || refuse "$1 is not in this release; name others in PARTS"
    printf '%s' "$folder/$1"
}

# What is not in the folder (crates, images, Go modules) is made of the commit that is signed.
commit=$(cat "$(file COMMIT)")
head=$(git rev-parse HEAD)
[[ $commit == "$head" ]] || refuse "the release is of commit $commit, and this is $head; check that out"
changes=$(git status --porcelain --untracked-files=all)
[[ -z $changes ]] || refuse "the tree has changes that are not committed; publish from a clean one:
$changes"

run() {
    printf '+ %s\n' "$*"
    [[ -n ${DRY_RUN:-} ]] || "$@"
}

# In a dry run a name that is not set stands for itself.
needed() {
    [[ -n ${!1:-} ]] && printf '%s' "${!1}" && return
    [[ -n ${DRY_RUN:-} ]] && printf '$%s' "$1" && return
    refuse "set $1"
}

publish_python() {
    local name path paths=()
    for name in actserve actserve_server; do
        path=$(file "$name-$version-py3-none-any.whl")
        paths+=("$path")
        path=$(file "$name-$version.tar.gz")
        paths+=("$path")
    done
    run uv publish "${paths[@]}"
}

publish_typescript() {
    local package
    package=$(file "actserve-client-$version.tgz")
    run npm publish --access public "$package"
}

# Cargo packs it once more, from the commit that the release was made of.
publish_rust() {
    run env -C client/rust cargo publish --package actserve --no-verify
}

publish_java() {
    local url server pom jar sources javadoc
    url=$(needed MAVEN_URL)
    server=$(needed MAVEN_SERVER)
    pom=$(file "actserve-$version.pom")
    jar=$(file "actserve-$version.jar")
    sources=$(file "actserve-$version-sources.jar")
    javadoc=$(file "actserve-$version-javadoc.jar")
    run mvn --batch-mode deploy:deploy-file "-Durl=$url" "-DrepositoryId=$server" "-DpomFile=$pom" \
        "-Dfile=$jar" "-Dsources=$sources" "-Djavadoc=$javadoc"
}

publish_chart() {
    local repository chart
    repository=$(needed CHART_REPOSITORY)
    chart=$(file "actserve-chart-$version.tgz")
    run helm push "$chart" "$repository"
}

# Images are built beside a release, and say of which commit.
publish_images() {
    local repository variant image revision
    repository=$(needed IMAGE_REPOSITORY)
    for variant in cpu cuda; do
        image=actserve:$version-$variant
        if [[ -z ${DRY_RUN:-} ]]; then
            revision=$(docker image inspect --format \
                '{{index .Config.Labels "org.opencontainers.image.revision"}}' "$image")
            [[ $revision == "$commit" ]] ||
                refuse "$image is of commit ${revision:-unknown}, not $commit; build it of that one"
        fi
        run docker tag "$image" "$repository:$version-$variant"
        run docker push "$repository:$version-$variant"
    done
}

# Last: from then on the version is what everybody takes it for.
publish_go() {
    run git tag --annotate --message "actserve $version" "v$version" "$commit"
    run git tag --annotate --message "actserve $version" "client/go/v$version" "$commit"
    run git push origin "v$version" "client/go/v$version"
}

for part in ${PARTS:-python typescript rust java chart images go}; do
    "publish_$part"
done
