#!/usr/bin/env bash
# Builds the wheels, source archives, software bills of materials (CycloneDX) and the Helm chart in dist/:
#   hack/package.sh [IMAGES [URL]]   IMAGES: registry and path of the images in the chart's default values and annotations,
#                                    such as registry.example.com/vllmendpoint; default: those of the chart
#                                    URL: of the repository, for the metadata of the wheels and the chart
set -euo pipefail
cd "$(dirname "$0")/.."
cache=${VLLMENDPOINT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/vllmendpoint}
export PATH=$cache/bin:$PATH
images=${1:-}
url=${2:-}
chart=charts/vllmendpoint-operator
. hack/common.sh

hack/tools.sh
rm -rf dist
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cp -r pyproject.toml uv.lock LICENSE crds operator worker "$chart" "$scratch"
mv "$scratch/${chart##*/}" "$scratch/chart"
if [[ -n $url ]]; then
  for folder in crds operator worker; do
    printf '\n[project.urls]\nRepository = "%s"\nDocumentation = "%s"\nChangelog = "%s"\n' \
      "$url" "$url/blob/HEAD/docs/README.md" "$url/blob/HEAD/CHANGELOG.md" >>"$scratch/$folder/pyproject.toml"
  done
  printf 'home: %s\nsources: [%s]\n' "$url" "$url" >>"$scratch/chart/Chart.yaml"
fi

for part in api operator worker; do
  watched "vllmendpoint-$part" uv build --quiet "$scratch" --package "vllmendpoint-$part" --out-dir dist
  watched "vllmendpoint-$part" uv export --quiet --frozen --no-dev --preview-features sbom-export --format cyclonedx1.5 \
    --package "vllmendpoint-$part" -o "dist/vllmendpoint-$part.cdx.json"
done
rm -f dist/.gitignore

if [[ -n $images ]]; then
  sed -i "s|registry: ghcr.io$|registry: ${images%%/*}|; s|repository: vllmendpoint/|repository: ${images#*/}/|" "$scratch/chart/values.yaml"
  sed -i "s|image: ghcr.io/vllmendpoint/|image: $images/|" "$scratch/chart/Chart.yaml"
  default=$(helm template release "$chart" | grep -c "ghcr.io/vllmendpoint/")
  replaced=$(helm template release "$scratch/chart" | grep -c "$images/") || true
  [[ $replaced == "$default" ]] || die "$replaced of $default references to images are in $images"
fi
helm package --destination dist "$scratch/chart" >/dev/null
(cd dist && sha256sum -- * >SHA256SUMS)
info "done: $(cd dist && echo ./* | sed 's:\./::g')"
