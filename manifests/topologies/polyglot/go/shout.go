// GET anything: what the service behind HELLO_URL says, in capitals.
package main

import (
	"io"
	"log"
	"net/http"
	"os"
	"strings"
)

func main() {
	hello := os.Getenv("HELLO_URL")
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		request, err := http.NewRequestWithContext(r.Context(), http.MethodGet, hello+r.URL.Path, nil)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		request.Header.Set("traceparent", r.Header.Get("traceparent"))
		answer, err := http.DefaultClient.Do(request)
		if err != nil {
			http.Error(w, "cannot ask "+hello+": "+err.Error(), http.StatusBadGateway)
			return
		}
		defer answer.Body.Close()
		body, err := io.ReadAll(answer.Body)
		if err != nil {
			http.Error(w, "cannot read "+hello+": "+err.Error(), http.StatusBadGateway)
			return
		}
		w.WriteHeader(answer.StatusCode)
		_, _ = io.WriteString(w, strings.ToUpper(string(body)))
	})
	log.Fatal(http.ListenAndServe("127.0.0.1:"+os.Getenv("PORT"), nil))
}
